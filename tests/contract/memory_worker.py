"""A worker of the same process: no engine, no port, no messages."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import TypeVar

from memserve.domain import DistilProgress, FreedMemory, ModuleKind, ModulePlace, RefusalReason
from memserve.domain.worker_calls import (
    AnswerPart,
    BlockEvent,
    ComposedPiece,
    ComposeProgress,
    ComposeRecipe,
    CompositionRequest,
    DistillationRequest,
    DistilReport,
    HeldBlocks,
    ScoringRequest,
    TokenScores,
    WorkerDied,
    WorkerFailure,
    WorkerFaulty,
    WorkerFull,
    WorkerLate,
    WorkerRequest,
    WorkerState,
)
from memserve.gateway.workers.calls import MEANS
from tests.contract.scripted_worker import Refused, ScriptedWorker

Event = TypeVar("Event")


class MemoryWorker:
    """`WorkerCalls` to a scripted worker."""

    def __init__(self, worker: ScriptedWorker, worker_id: str) -> None:
        self.requests: list[WorkerRequest] = []
        """Every request for an answer."""
        self._worker = worker
        self._worker_id = worker_id
        self._waits: set[asyncio.Timeout] = set()
        """What the calls under way wait for."""
        self._closed = False

    async def generate(
        self, request: WorkerRequest, timeout_s: float | None
    ) -> AsyncGenerator[AnswerPart, None]:
        self.requests.append(request)
        async with contextlib.aclosing(self._stream(self._worker.generate(request), timeout_s)) as parts:
            async for part in parts:
                yield part
                if part.finish_reason is not None:
                    return
        raise WorkerDied(self._worker_id, "the stream ended early")

    async def score_tokens(self, request: ScoringRequest, timeout_s: float | None) -> TokenScores:
        async with self._waiting(_until_s(timeout_s)):
            return await self._worker.score_tokens(request)

    async def lookup_blocks(self, keys: Sequence[bytes], timeout_s: float) -> HeldBlocks:
        async with self._waiting(_until_s(timeout_s)):
            return self._worker.lookup_blocks(keys)

    async def forget_memories(self, tenant: str, keys: Sequence[str], timeout_s: float) -> FreedMemory:
        async with self._waiting(_until_s(timeout_s)):
            return self._worker.forget_memories(tenant, keys)

    async def load_module(self, digest: str, kind: ModuleKind, *, pin: bool, timeout_s: float) -> ModulePlace:
        async with self._waiting(_until_s(timeout_s)):
            return await self._worker.load_module(digest, kind, pin=pin)

    async def unload_module(
        self, digest: str, kind: ModuleKind, *, forget: bool, timeout_s: float
    ) -> ModulePlace:
        # The worker's directory is the module store itself, so there is no copy to forget.
        async with self._waiting(_until_s(timeout_s)):
            return self._worker.unload_module(digest, kind)

    async def module_places(self, digests: Sequence[str], timeout_s: float) -> list[ModulePlace]:
        async with self._waiting(_until_s(timeout_s)):
            return self._worker.module_places(digests)

    async def try_module(self, digest: str, kind: ModuleKind, timeout_s: float) -> float:
        async with self._waiting(_until_s(timeout_s)):
            return self._worker.try_module(digest, kind)

    async def set_pace(self, window_s: float, timeout_s: float) -> None:
        async with self._waiting(_until_s(timeout_s)):
            self._worker.set_pace(window_s)

    def compose(
        self, request: CompositionRequest, timeout_s: float | None = None
    ) -> AsyncGenerator[ComposeProgress | ComposedPiece | ComposeRecipe, None]:
        return self._stream(self._worker.compose(request), timeout_s)

    def distil(
        self, request: DistillationRequest, timeout_s: float | None = None
    ) -> AsyncGenerator[DistilProgress | ComposedPiece | DistilReport, None]:
        return self._stream(self._worker.distil(request), timeout_s)

    def watch(
        self, epoch: int, after_sequence: int, timeout_s: float | None = None
    ) -> AsyncGenerator[WorkerState | BlockEvent, None]:
        return self._stream(self._worker.watch(epoch, after_sequence), timeout_s)

    async def close(self) -> None:
        self._closed = True
        for wait in self._waits:
            if not wait.expired():
                wait.reschedule(asyncio.get_running_loop().time())

    async def _stream(
        self, events: AsyncGenerator[Event, None], timeout_s: float | None
    ) -> AsyncGenerator[Event, None]:
        """The same events. Between two of them the caller may take its time: only waiting is bounded."""
        until_s = _until_s(timeout_s)
        async with contextlib.aclosing(events):
            while True:
                async with self._waiting(until_s):
                    event = await anext(events, None)
                if event is None:
                    return
                yield event

    @contextlib.asynccontextmanager
    async def _waiting(self, until_s: float | None) -> AsyncIterator[None]:
        """Wait for the worker until a time of the loop's clock. Raises WorkerFailure, and nothing else."""
        if self._closed:
            raise WorkerDied(self._worker_id, "the calls are closed")
        try:
            async with asyncio.timeout_at(until_s) as wait:
                self._waits.add(wait)
                try:
                    yield
                finally:
                    self._waits.discard(wait)
        except TimeoutError:
            meaning = WorkerDied if self._closed else WorkerLate
            raise meaning(self._worker_id, "the calls are closed" if self._closed else "too late") from None
        except Refused as refusal:
            if refusal.reason:
                reason = RefusalReason(refusal.reason)
                raise WorkerFull(self._worker_id, refusal.detail, reason, refusal.retry_after_s) from None
            meaning = MEANS.get(refusal.status, WorkerFailure)
            raise meaning(self._worker_id, refusal.detail) from None
        except Exception as error:
            raise WorkerFaulty(self._worker_id, f"a fault of the worker's own code: {error!r}") from error


def _until_s(timeout_s: float | None) -> float | None:
    return None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
