"""Which modules an engine is asked to take and to let go: over an engine that only keeps count."""

from __future__ import annotations

import asyncio
import warnings
from pathlib import Path

import pytest

from memserve.domain import ModuleKind, ModulePlace
from memserve.errors import InvalidModule, ModuleNotFound
from memserve.memory.blobs import BlobStore

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM imports what torch has deprecated
    from memserve.worker.modules import ModuleRefused, Modules, Places

LORA = ModuleKind.LORA
A, B, C, D = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)
TIMEOUT_S = 10


class CountingHolder:
    """Has room for two. `loads`: in order. It waits with every load until `free` is set, and refuses D."""

    capacity = 2
    setting = "max_cpu_loras"

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.free = asyncio.Event()
        self.free.set()
        self._held: Places = {}

    async def places(self) -> Places:
        return dict(self._held)

    async def load(self, digest: str, folder: Path, leaving: str | None) -> Places:
        self.loads.append(digest)
        assert (folder / "weights").is_file()
        await self.free.wait()
        if digest == D:
            raise InvalidModule("module", "the engine refuses it")
        if leaving is not None:
            del self._held[leaving]
        self._held[digest] = ModulePlace.HOST
        assert len(self._held) <= self.capacity
        return dict(self._held)

    async def unload(self, digest: str) -> Places:
        del self._held[digest]
        return dict(self._held)


@pytest.fixture
def holder() -> CountingHolder:
    return CountingHolder()


@pytest.fixture
def modules(tmp_path: Path, holder: CountingHolder) -> Modules:
    """Their store is another directory than the worker's own."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "weights").write_bytes(b"some weights")
    blobs = BlobStore(str(tmp_path / "store"), tmp_path / "local")
    for digest in (A, B, C, D):
        blobs.put(digest, source)
    return Modules(blobs, {LORA: holder})


async def test_loads_of_one_module_at_the_same_time_are_one(modules: Modules, holder: CountingHolder) -> None:
    assert await asyncio.gather(*(modules.load(A, LORA) for _ in range(5))) == [ModulePlace.HOST] * 5
    assert holder.loads == [A]


async def test_who_waits_for_a_load_and_gives_up_leaves_it_to_the_others(modules: Modules, holder: CountingHolder) -> None:
    holder.free.clear()
    first, second = (asyncio.create_task(modules.load(A, LORA)) for _ in range(2))
    async with asyncio.timeout(TIMEOUT_S):
        while not holder.loads:
            await asyncio.sleep(0.001)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert modules.used == [A]
    holder.free.set()
    assert await second is ModulePlace.HOST
    assert modules.used == []
    assert holder.loads == [A]


async def test_the_least_recently_used_makes_room(modules: Modules) -> None:
    for digest in (A, B, A, C):
        await modules.load(digest, LORA)
    assert set(modules.held) == {A, C}


async def test_a_module_in_use_stays_and_is_not_unloaded(modules: Modules) -> None:
    async with modules.using(A, LORA):
        for digest in (B, C):
            await modules.load(digest, LORA)
        assert set(modules.held) == {A, C}
        assert modules.used == [A]
        with pytest.raises(ModuleRefused, match="requests use it"):
            await modules.unload(A, LORA)
        assert A in modules.held
    assert await modules.unload(A, LORA) is ModulePlace.DISK


async def test_a_pinned_module_stays_until_it_is_unloaded(modules: Modules) -> None:
    await modules.load(A, LORA, pin=True)
    for digest in (B, C, B):
        await modules.load(digest, LORA)
    assert set(modules.held) == {A, B}
    await modules.unload(A, LORA)
    await modules.load(A, LORA)
    for digest in (B, C):
        await modules.load(digest, LORA)
    assert set(modules.held) == {B, C}


async def test_where_all_are_pinned_or_in_use_there_is_no_room(modules: Modules) -> None:
    await modules.load(A, LORA, pin=True)
    async with modules.using(B, LORA):
        with pytest.raises(ModuleRefused, match=r"no room: 2 modules are in use or pinned \(setting max_cpu_loras\)"):
            await modules.load(C, LORA)
        assert set(modules.held) == {A, B}
    await modules.load(C, LORA)
    assert set(modules.held) == {A, C}


async def test_a_module_that_the_engine_refuses_is_not_held_and_what_the_engine_says_counts(modules: Modules) -> None:
    for digest in (A, B):
        await modules.load(digest, LORA)
    with pytest.raises(InvalidModule):
        await modules.load(D, LORA)
    assert set(modules.held) == {A, B}
    assert modules.used == []


async def test_a_module_that_is_nowhere_is_not_found(modules: Modules) -> None:
    with pytest.raises(ModuleNotFound):
        await modules.load("0" * 64, LORA)
    with pytest.raises(InvalidModule, match="64 lower-case hex digits"):
        await modules.load("../secrets", LORA)
    with pytest.raises(ModuleRefused, match="logit_expert"):
        await modules.load(A, ModuleKind.LOGIT_EXPERT)


async def test_a_forgotten_module_is_fetched_again(modules: Modules) -> None:
    await modules.load(A, LORA)
    assert await modules.unload(A, LORA, forget=True) is ModulePlace.ABSENT
    assert await modules.load(A, LORA) is ModulePlace.HOST
