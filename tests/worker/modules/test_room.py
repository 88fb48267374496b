"""Which modules an engine is asked to take and to let go: over an engine that only keeps count."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from memserve.domain import ModuleKind, ModulePlace
from memserve.errors import BlobDamaged, InvalidModule, ModuleNotFound
from memserve.memory.modules.blobs.store import BlobStore

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM imports what torch has deprecated
    from memserve.worker.modules.copies import LocalCopies
    from memserve.worker.modules.held import Modules
    from memserve.worker.modules.room import ModuleRefused, Places

LORA, EXPERT = ModuleKind.LORA, ModuleKind.LOGIT_EXPERT
A, B, C, D = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)
TIMEOUT_S = 10


class CountingHolder:
    """Has room for two. `loads`: in order. It waits with every load until `free` is set, and refuses D."""

    def __init__(self, capacity: int = 2, setting: str = "max_cpu_loras") -> None:
        self.capacity = capacity
        self.setting = setting
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


class SizedHolder(CountingHolder):
    """Has room for four modules of 10 bytes together. A module has as many bytes as its file."""

    capacity_bytes = 10
    bytes_setting = "prefix_host_bytes"

    def __init__(self) -> None:
        super().__init__(4, "max_cartridges")

    async def size_bytes(self, folder: Path) -> int:
        return (folder / "weights").stat().st_size


@pytest.fixture
def sized(tmp_path: Path) -> Modules:
    """A and B have 4 bytes, C has 8, and D 11."""
    blobs = BlobStore("", tmp_path / "sized")
    for digest, size in ((A, 4), (B, 4), (C, 8), (D, 11)):
        source = tmp_path / digest
        source.mkdir()
        (source / "weights").write_bytes(bytes(size))
        blobs.put(digest, source)
    return Modules(LocalCopies(blobs), {LORA: SizedHolder()}, {})


@pytest.fixture
def holder() -> CountingHolder:
    return CountingHolder()


@pytest.fixture
def experts() -> CountingHolder:
    """Has room for one."""
    return CountingHolder(1, "max_experts")


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    """The store is another directory than the worker's own."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "weights").write_bytes(b"some weights")
    blobs = BlobStore(str(tmp_path / "store"), tmp_path / "local")
    for digest in (A, B, C, D):
        blobs.put(digest, source)
    return blobs


@pytest.fixture
def modules(blobs: BlobStore, holder: CountingHolder, experts: CountingHolder) -> Modules:
    return Modules(LocalCopies(blobs), {LORA: holder, EXPERT: experts}, {})


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():
            await asyncio.sleep(0.001)


async def settled() -> None:
    """Everything that can go on has gone on; fetches, which are in threads, take a moment."""
    for _ in range(80):
        await asyncio.sleep(0.005)


async def test_loads_of_one_module_at_the_same_time_are_one(modules: Modules, holder: CountingHolder) -> None:
    assert await asyncio.gather(*(modules.load(A, LORA) for _ in range(5))) == [ModulePlace.HOST] * 5
    assert holder.loads == [A]


async def test_who_waits_for_a_load_and_gives_up_leaves_it_to_the_others(
    modules: Modules, holder: CountingHolder
) -> None:
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


async def test_who_finds_no_room_waits_until_a_module_may_leave(modules: Modules) -> None:
    await modules.load(A, LORA, pin=True)
    async with modules.using(B, LORA):
        waiting = asyncio.create_task(modules.load(C, LORA))
        await settled()
        assert not waiting.done()
        assert set(modules.held) == {A, B}
        await modules.refresh()
        assert await modules.load(A, LORA) is ModulePlace.HOST
    async with asyncio.timeout(TIMEOUT_S):
        await waiting
    assert set(modules.held) == {A, C}


async def test_who_waits_for_room_and_gives_up_is_not_loaded_and_others_come_next(
    modules: Modules, holder: CountingHolder
) -> None:
    async with modules.using(A, LORA), modules.using(B, LORA):
        waiting = asyncio.create_task(modules.load(C, LORA))
        await settled()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert modules.used == [A, B]
    await settled()
    assert holder.loads == [A, B]
    await modules.load(C, LORA)
    assert holder.loads == [A, B, C]


async def test_a_module_in_steady_use_makes_room_for_who_came_first(
    modules: Modules, holder: CountingHolder
) -> None:
    """Without an order A and B, which are always in somebody's use, would keep C out."""
    served: list[str] = []

    async def use(digest: str, ended: asyncio.Event) -> None:
        async with modules.using(digest, LORA):
            served.append(digest)
            await ended.wait()

    first, last = asyncio.Event(), asyncio.Event()
    tasks = []
    # One after the other: A is the least recently used, and the one that will be set to leave.
    for number, (digest, ended) in enumerate(((A, first), (B, last)), start=1):
        tasks.append(asyncio.create_task(use(digest, ended)))
        await until(lambda number=number: len(served) == number)
    tasks += [asyncio.create_task(use(C, last))]
    await settled()
    # One module is to leave now, and those who want it come after C.
    tasks += [asyncio.create_task(use(digest, last)) for digest in (A, A)]
    await settled()
    assert sorted(served) == [A, B]
    first.set()
    await until(lambda: len(served) == 3)
    assert sorted(served) == [A, B, C]
    assert holder.loads[-1] == C
    last.set()
    async with asyncio.timeout(TIMEOUT_S):
        await asyncio.gather(*tasks)
    assert sorted(served) == [A, A, A, B, C]
    assert holder.loads[-1] == A


async def test_many_requests_for_more_modules_than_fit_are_all_served(
    modules: Modules, holder: CountingHolder
) -> None:
    async def use(digest: str) -> None:
        async with modules.using(digest, LORA):
            assert digest in modules.held
            await asyncio.sleep(0.001)

    await modules.load(A, LORA, pin=True)
    async with asyncio.timeout(TIMEOUT_S):
        await asyncio.gather(*(use(digest) for _ in range(30) for digest in (A, B, C)))
    assert A in modules.held
    assert modules.used == []


async def test_where_all_are_pinned_there_is_no_room_and_no_waiting(modules: Modules) -> None:
    await modules.load(A, EXPERT, pin=True)
    with pytest.raises(ModuleRefused, match=r"no room: all 1 modules are pinned \(setting max_experts\)"):
        await modules.load(C, EXPERT)
    modules.unpin(A, EXPERT)
    await modules.load(C, EXPERT)
    assert set(modules.held) == {C}


async def test_at_most_half_of_what_fits_is_pinned(modules: Modules) -> None:
    await modules.load(A, LORA, pin=True)
    with pytest.raises(
        ModuleRefused, match=r"1 of the 2 that fit \(setting max_cpu_loras\) are pinned, and no more may be"
    ):
        await modules.load(B, LORA, pin=True)
    assert set(modules.held) == {A}
    await modules.load(A, LORA, pin=True)
    await modules.load(B, LORA)
    assert modules.pinned == [(LORA, A)]


async def test_one_kind_is_exchanged_and_asked_about_while_a_long_read_goes_on_in_another(
    modules: Modules, experts: CountingHolder
) -> None:
    experts.free.clear()
    reading = asyncio.create_task(modules.load(A, EXPERT))
    await settled()
    async with asyncio.timeout(TIMEOUT_S):
        assert await modules.load(B, LORA) is ModulePlace.HOST
        await modules.refresh()
        await modules.unload(B, LORA)
    assert not reading.done()
    experts.free.set()
    await reading


async def test_places_tell_the_disk_from_the_module_store_alone(modules: Modules) -> None:
    assert await modules.place(A) is ModulePlace.ABSENT
    await modules.load(A, LORA)
    assert await modules.place(A) is ModulePlace.HOST
    await modules.unload(A, LORA)
    assert await modules.place(A) is ModulePlace.DISK
    with pytest.raises(InvalidModule, match="digest"):
        await modules.place("../secrets")


async def test_a_damaged_copy_is_fetched_again_and_a_damaged_store_told(
    tmp_path: Path, modules: Modules, holder: CountingHolder
) -> None:
    copy = await modules.files(A) / "weights"
    other = Modules(LocalCopies(BlobStore(str(tmp_path / "store"), tmp_path / "local")), {LORA: holder}, {})
    copy.write_bytes(b"same weights")
    await other.load(A, LORA)
    assert copy.read_bytes() == b"some weights"
    (tmp_path / "store" / B / "weights").write_bytes(b"same weights")
    its_own_store = Modules(LocalCopies(BlobStore("", tmp_path / "store")), {LORA: holder}, {})
    for worker in (modules, its_own_store):
        with pytest.raises(BlobDamaged, match="sha256"):
            await worker.load(B, LORA)
    assert B not in holder.loads


async def test_a_module_that_the_engine_refuses_is_not_held_and_what_the_engine_says_counts(
    modules: Modules,
) -> None:
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


async def test_a_kind_that_the_worker_does_not_hold_is_refused(
    blobs: BlobStore, holder: CountingHolder
) -> None:
    with pytest.raises(
        ModuleRefused, match="holds no modules of kind logit_expert: setting max_experts is 0"
    ):
        await Modules(LocalCopies(blobs), {LORA: holder}, {EXPERT: "setting max_experts is 0"}).load(
            A, EXPERT
        )


async def test_a_forgotten_module_is_fetched_again(modules: Modules) -> None:
    await modules.load(A, LORA)
    assert await modules.unload(A, LORA, forget=True) is ModulePlace.ABSENT
    assert await modules.load(A, LORA) is ModulePlace.HOST


async def test_as_many_leave_as_the_bytes_of_another_need(sized: Modules) -> None:
    await sized.load(A, LORA)
    await sized.load(B, LORA)
    assert set(sized.held) == {A, B}
    await sized.load(C, LORA)
    assert set(sized.held) == {C}
    await sized.load(A, LORA)
    assert set(sized.held) == {A}


async def test_bytes_in_use_are_waited_for(sized: Modules) -> None:
    async with sized.using(A, LORA):
        await sized.load(B, LORA)
        waiting = asyncio.create_task(sized.load(C, LORA))
        await settled()
        assert not waiting.done()
        assert A in sized.held
    async with asyncio.timeout(TIMEOUT_S):
        await waiting
    assert set(sized.held) == {C}


async def test_a_module_of_too_many_bytes_is_refused_and_nothing_leaves_for_it(sized: Modules) -> None:
    await sized.load(A, LORA)
    with pytest.raises(ModuleRefused, match=r"takes 11 bytes of 10 \(setting prefix_host_bytes\)"):
        await sized.load(D, LORA)
    assert set(sized.held) == {A}
    await sized.load(A, LORA, pin=True)
    with pytest.raises(ModuleRefused, match=r"all 1 modules are pinned \(setting prefix_host_bytes\)"):
        await sized.load(C, LORA)
    assert set(sized.held) == {A}


async def test_a_module_that_does_not_fit_beside_the_pinned_ones_makes_nobody_leave(sized: Modules) -> None:
    """Nor does it wait at the head of the line for what would not help."""
    await sized.load(A, LORA, pin=True)
    await sized.load(B, LORA)
    refusal = r"takes 8 bytes, and pinned modules 4 of 10 \(setting prefix_host_bytes\)"
    with pytest.raises(ModuleRefused, match=refusal):
        await sized.load(C, LORA)
    assert set(sized.held) == {A, B}
    async with sized.using(B, LORA), asyncio.timeout(TIMEOUT_S):
        with pytest.raises(ModuleRefused, match=refusal):
            await sized.load(C, LORA)
    sized.unpin(A, LORA)
    await sized.load(C, LORA)
    assert set(sized.held) == {C}
