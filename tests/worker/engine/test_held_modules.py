"""What a request holds while it waits for others: over an engine that only keeps count."""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from memserve.domain import EmbeddedRows, ModuleKind, ModulePlace, Sampling
from memserve.domain.worker_calls import PLACEHOLDER_TOKEN, AppliedModule, WorkerRequest
from memserve.memory.modules.blobs.store import BlobStore

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM imports what torch has deprecated
    import torch

    from memserve.worker.engine.engine import Engine
    from memserve.worker.modules.copies import LocalCopies
    from memserve.worker.modules.held import Modules
    from memserve.worker.modules.kinds.embedded import SoftPrompt
    from memserve.worker.modules.room import Places

KINDS = (ModuleKind.LORA, ModuleKind.LOGIT_EXPERT, ModuleKind.CARTRIDGE)
DIGESTS = [f"{number:064x}" for number in range(6)]
LIMIT_S = 20.0


class OneAtATime:
    """Of any kind. There is room for one module."""

    capacity = 1
    setting = "one"

    def __init__(self) -> None:
        self._held: Places = {}

    async def places(self) -> Places:
        return dict(self._held)

    async def load(self, digest: str, folder: Path, leaving: str | None) -> Places:
        self._held = {digest: ModulePlace.HOST}
        return dict(self._held)

    async def unload(self, digest: str) -> Places:
        self._held = {}
        return {}

    def apply(self, call: Any, digest: str, folder: Path, strength: float) -> None:
        """Changes nothing."""


class OneToken:
    """An engine that answers with one token, a moment later."""

    errored = False
    model_config = SimpleNamespace(get_vocab_size=lambda: 10)

    async def generate(self, *arguments: Any, **keywords: Any) -> AsyncIterator[Any]:
        await asyncio.sleep(0.001)
        answer = SimpleNamespace(text="x", token_ids=[1], finish_reason="stop", logprobs=None)
        yield SimpleNamespace(outputs=[answer], finished=True, num_cached_tokens=0, kv_transfer_params=None)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    source = tmp_path / "source"
    source.mkdir()
    (source / "weights").write_bytes(b"some weights")
    blobs = BlobStore("", tmp_path / "modules")
    for digest in DIGESTS:
        blobs.put(digest, source)
    holders = {kind: OneAtATime() for kind in KINDS}
    modules = Modules(LocalCopies(blobs), holders, {})
    return Engine(cast(Any, OneToken()), modules, cast(Any, holders), tmp_path)


def request(number: int, modules: Sequence[tuple[str, ModuleKind]]) -> WorkerRequest:
    return WorkerRequest(
        f"r{number}",
        [PLACEHOLDER_TOKEN, 1, 2],
        "t",
        "salt",
        Sampling(max_tokens=1),
        modules=tuple(AppliedModule(digest, kind) for digest, kind in modules),
    )


async def test_requests_that_name_the_same_kinds_in_other_orders_do_not_wait_for_each_other(
    engine: Engine,
) -> None:
    """Each with modules of its own, while there is room for one of each kind."""

    async def answer(number: int) -> None:
        shift = number % len(KINDS)
        wanted = [(DIGESTS[number], kind) for kind in (*KINDS[shift:], *KINDS[:shift])]
        async with contextlib.aclosing(engine.generate(request(number, wanted))) as parts:
            async for _ in parts:
                pass

    async with asyncio.timeout(LIMIT_S):
        await asyncio.gather(*map(answer, range(len(DIGESTS))))


async def test_a_request_that_waits_for_its_turn_has_no_embeddings_yet(engine: Engine) -> None:
    made: list[int] = []

    class Counted(SoftPrompt):
        def prompt(self, token_ids: Sequence[int], cache_salt: str) -> Any:
            made.append(len(token_ids))
            return super().prompt(token_ids, cache_salt)

    held = Counted("a" * 64, EmbeddedRows(bytes(8), 8), torch.zeros(1, 2))
    kind = OneAtATime()
    kind.apply = lambda call, *_: setattr(call, "soft_prompt", held)  # type: ignore[method-assign]
    engine.kinds = cast(Any, {ModuleKind.LORA: kind})
    begins = asyncio.Event()

    @contextlib.asynccontextmanager
    async def turn() -> AsyncIterator[None]:
        await begins.wait()
        yield

    answering = anext(engine.generate(request(0, [(DIGESTS[0], ModuleKind.LORA)]), turn()))
    waiting = asyncio.ensure_future(answering)
    await asyncio.sleep(0.3)
    assert not waiting.done() and made == []
    begins.set()
    async with asyncio.timeout(LIMIT_S):
        assert (await waiting).text == "x"
    assert made == [3]
