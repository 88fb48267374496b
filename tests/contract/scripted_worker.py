"""What a fake worker does: scripted answers with real block keys. No engine, no port, no messages.

`memory_worker.py` and `fake_worker.py` are its two faces.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import grpc

from memserve.demo import MODEL_DIR
from memserve.domain import CachedTokens, DistilProgress, FinishReason, FreedMemory, ModuleKind, ModulePlace
from memserve.domain.kinds import KINDS, kind_of_name, origin_of
from memserve.domain.names import is_sha256
from memserve.domain.worker_calls import (
    SCORED_TOKENS_MAX,
    AnswerPart,
    BlockChange,
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
    WorkerRequest,
    WorkerState,
)
from memserve.kv.keys import prompt_keys
from memserve.memory.modules.kinds.soft_prompt import read_rows
from memserve.model.files import open_model
from tests.contract.block_log import FakeBlockLog

BLOCK_TOKENS = 32
STATE_INTERVAL_S = 0.1
PIECE_BYTES = 1 << 20
SOONEST_S = 0.001
"""No first token comes sooner."""
JOINED_TOKENS = 4


Scorer = Callable[[ScoringRequest], Sequence[float]]


def all_alike(request: ScoringRequest) -> list[float]:
    """Every token is as likely as the others."""
    return [-0.5] * len(request.continuation)


class Refused(Exception):
    """The worker ends a call with a status, and says why."""

    def __init__(
        self, status: grpc.StatusCode, detail: str, reason: str = "", retry_after_s: float = 0.0
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.reason = reason
        """Of a worker that has too much to do: why, and when to come again."""
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Script:
    """How an answer goes. Without more it goes on until `max_tokens`."""

    token_ids: tuple[int, ...] = (501, 502, 503)
    """Again and again, one a part."""
    texts: tuple[str, ...] = ()
    """Of the first tokens, in the place of their own."""
    fails_with: grpc.StatusCode | None = None
    """The status that the answer ends with, after `fails_after` tokens."""
    fails_after: int = 0
    hangs_after: int | None = None
    """Tokens after which nothing comes any more."""
    stops_after: int | None = None
    """Tokens after which the answer is complete."""
    ends_early_after: int | None = None
    """Tokens after which the stream just ends."""
    pause_s: float = 0.0
    """Before every token."""
    full_s: float = 0.0
    """The worker has too much to do, and says to come again after this time. 0: it has not."""
    full_over_tokens: int = 0
    """It has too much to do for prompts of more tokens."""


PLAIN = Script()


class ScriptedWorker:
    """A worker's work. Every method raises Refused where a worker ends the call with a status.

    Its modules are the folders modules_root/modules/<digest>: the module store itself, and no copy of it.
    """

    silent: bool = False
    """Nothing comes on its streams, which stay open."""
    leaving: bool = False
    """It ends its streams, and finishes the answers under way."""
    window_s: float = 0.0
    """More than 0: tokens come in parts of JOINED_TOKENS."""
    watch_faults: int = 0
    """How many watches still fail at once, by a fault in the worker's own code."""

    def __init__(self, modules_root: Path, script: Script = PLAIN, block_tokens: int = BLOCK_TOKENS) -> None:
        self.modules_root = modules_root
        self.script = script
        self.block_tokens = block_tokens
        self.epoch = time.time_ns()
        self.log = FakeBlockLog()
        self.cancelled: set[str] = set()
        """Ids of the requests whose callers did not stay to the end."""
        self.refuses: dict[str, str] = {}
        """Why a module cannot be loaded here, by digest; why there is no composition, by method."""
        self.wrong: dict[str, str] = {}
        """The same, for what can be loaded or composed nowhere."""
        self.changes: dict[str, float] = {}
        """What the trial of a module measures, by digest; 0.5 for the others."""
        self.pinned: set[str] = set()
        """Digests of the modules to keep."""
        self.may_load = asyncio.Event()
        """While it is not set, `load_module` waits."""
        self.may_load.set()
        self.forgotten: list[tuple[str, tuple[str, ...]]] = []
        """Tenants whose KV was freed, with the keys of their memories."""
        self.held_chunks = 0
        """How many chunks cannot be freed yet: one fewer with every call."""
        self.distillations: list[DistillationRequest] = []
        """What was asked to be distilled."""
        self.distilled = Path()
        """The folder of the files that come out."""
        self.may_distil = asyncio.Event()
        """While it is not set, `distil` waits."""
        self.may_distil.set()
        self.scorer: Scorer = all_alike
        self._running: dict[str, list[str]] = {}
        """Digests that each answer under way uses, by request id."""
        self._places: dict[str, ModulePlace] = {}
        """Where loaded modules are, by digest."""

    def hold(self, keys: Iterable[bytes]) -> None:
        self.log.store(keys, "GPU")

    async def generate(self, request: WorkerRequest) -> AsyncGenerator[AnswerPart, None]:
        # Strength 0 is off.
        used = [
            module
            for module in request.modules
            if module.strength or not KINDS[_known(module.kind)].has_strength
        ]
        for module in used:
            self._load(module.digest, module.kind, wrong=grpc.StatusCode.FAILED_PRECONDITION)
        is_full = self.script.full_s > 0 and len(request.token_ids) > self.script.full_over_tokens
        if is_full or (request.refuse_late and (request.first_token_s or 1.0) < SOONEST_S):
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "too late", "late", self.script.full_s or 0.5)
        self._running[request.request_id] = [module.digest for module in used]
        self.log.changed.set()
        ended = False
        try:
            joined: AnswerPart | None = None
            async with contextlib.aclosing(self._parts(request)) as parts:
                async for part in parts:
                    joined = part if joined is None else _joined(joined, part)
                    ended = part.finish_reason is not None
                    if ended or not self.window_s or len(joined.token_ids) == JOINED_TOKENS:
                        yield joined
                        joined = None
            ended = True
        except Refused:
            ended = True
            raise
        finally:
            if not ended:
                self.cancelled.add(request.request_id)
            del self._running[request.request_id]
            self.log.changed.set()

    async def score_tokens(self, request: ScoringRequest) -> TokenScores:
        """Takes as long as an answer, and leaves the prompt's blocks behind."""
        tokens = len(request.continuation)
        if not 0 < tokens <= SCORED_TOKENS_MAX:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"continuation: 1 to {SCORED_TOKENS_MAX} tokens")
        if min(request.continuation) < 0:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "continuation: token ids, not below 0")
        cached = CachedTokens()
        moving = tuple(each for each in request.modules if KINDS[_known(each.kind)].moves_logprobs)
        async with contextlib.aclosing(self.generate(replace(request.answer, modules=moving))) as parts:
            async for part in parts:
                cached = part.cached or cached
        return TokenScores(tuple(self.scorer(request)), cached)

    async def _parts(self, request: WorkerRequest) -> AsyncGenerator[AnswerPart, None]:
        script, sampling = self.script, request.sampling
        keys = self._block_keys(request)
        usable = keys[: (len(request.token_ids) - 1) // self.block_tokens]
        cached = CachedTokens(device=self.lookup_blocks(usable).held * self.block_tokens)
        for produced in itertools.count():
            if script.fails_with is not None and produced == script.fails_after:
                raise Refused(script.fails_with, "as scripted")
            if produced == script.ends_early_after:
                return
            if produced == script.hangs_after:
                await asyncio.Event().wait()
            await asyncio.sleep(script.pause_s)
            if produced == 0:
                self.log.store(keys, "GPU")
            token = script.token_ids[produced % len(script.token_ids)]
            reason = None
            if produced + 1 == sampling.max_tokens:
                reason = FinishReason.LENGTH
            elif produced + 1 == script.stops_after:
                reason = FinishReason.STOP
            yield AnswerPart(
                text=script.texts[produced] if produced < len(script.texts) else f" t{token}",
                token_ids=(token,),
                logprobs=(-0.5,) if sampling.logprobs else (),
                cached=cached if reason else None,
                finish_reason=reason,
            )
            if reason:
                return

    def _block_keys(self, request: WorkerRequest) -> list[bytes]:
        origin = origin_of((module.digest, module.kind) for module in request.modules)
        embedded = None
        if origin.is_embedded:
            model = open_model(MODEL_DIR)
            embedded = read_rows(self._folder(origin.prefix), model.hidden_size, model.dtype, 1 << 20)
        return prompt_keys(list(request.token_ids), self.block_tokens, origin, request.cache_salt, embedded)

    def lookup_blocks(self, keys: Sequence[bytes]) -> HeldBlocks:
        return HeldBlocks(*self.log.leading(keys))

    def forget_memories(self, tenant: str, keys: Sequence[str]) -> FreedMemory:
        """All that is held: the keys do not say whose they are."""
        if not tenant:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "tenant: must be named")
        self.forgotten.append((tenant, tuple(keys)))
        held, self.held_chunks = self.held_chunks, max(self.held_chunks - 1, 0)
        blocks = len(self.log.held)
        self.log.clear()
        return FreedMemory(blocks, 0, held)

    async def load_module(self, digest: str, kind: str, *, pin: bool) -> ModulePlace:
        await self.may_load.wait()
        place = self._load(digest, kind)
        if pin:
            self.pinned.add(digest)
        return place

    def unload_module(self, digest: str, kind: str) -> ModulePlace:
        _known(kind)
        if digest in self._used_modules():
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, f"module {digest}: requests use it")
        self._places.pop(digest, None)
        self.pinned.discard(digest)
        self.log.changed.set()
        return self._place(digest)

    def module_places(self, digests: Sequence[str]) -> list[ModulePlace]:
        if not all(map(is_sha256, digests)):
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "digest: must be 64 lower-case hex digits")
        return [self._place(digest) for digest in digests]

    def try_module(self, digest: str, kind: str) -> float:
        self._load(digest, kind)
        return self.changes.get(digest, 0.5)

    def set_pace(self, window_s: float) -> None:
        if not 0 <= window_s < math.inf:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "window_ms: a number, not below 0")
        self.window_s = window_s

    async def compose(
        self, request: CompositionRequest
    ) -> AsyncGenerator[ComposeProgress | ComposedPiece | ComposeRecipe, None]:
        """The first parent's files, and a recipe that names the request."""
        folders = [self._folder(digest) for digest, _ in request.parents]
        for folder in folders:
            if not _has_weights(folder, ModuleKind.LORA):
                raise _absent(folder.name)
        self._refuse(request.method)
        for done in range(len(folders) + 1):
            yield ComposeProgress(done, len(folders))
        for name in KINDS[ModuleKind.LORA].files:
            content = (folders[0] / name).read_bytes()
            for start in range(0, len(content), PIECE_BYTES):
                yield ComposedPiece(name, content[start : start + PIECE_BYTES])
        parents = [digest for digest, _ in request.parents]
        yield ComposeRecipe(json.dumps({"method": request.method, "parents": parents, "rank": request.rank}))

    async def distil(
        self, request: DistillationRequest
    ) -> AsyncGenerator[DistilProgress | ComposedPiece | DistilReport, None]:
        """The files of `distilled`, and a report that names the request."""
        self.distillations.append(request)
        if request.kind != ModuleKind.LORA:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"kind: {request.kind} cannot be distilled")
        self._refuse("distil")
        for done in range(3):
            await self.may_distil.wait()
            yield DistilProgress("training", done, 2, 0.5 * done, 10 * done, 1.0 / (1 + done))
        for file in sorted(self.distilled.iterdir()):
            yield ComposedPiece(file.name, file.read_bytes())
        yield DistilReport(json.dumps({"texts": len(request.texts), "without_question": []}))

    async def watch(self, epoch: int, after_sequence: int) -> AsyncGenerator[WorkerState | BlockEvent, None]:
        if self.watch_faults:
            self.watch_faults -= 1
            raise RuntimeError("a fault of the worker's own")
        own_epoch = self.epoch
        followed = after_sequence if epoch == own_epoch else None
        while True:
            if self.leaving:
                raise Refused(grpc.StatusCode.UNAVAILABLE, "this worker leaves")
            self.log.changed.clear()
            if not self.silent:
                for sequence, change, keys in self.log.since(followed):
                    followed = sequence
                    yield BlockEvent(own_epoch, sequence, BlockChange(change), keys)
                yield self._state()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STATE_INTERVAL_S):
                    await self.log.changed.wait()

    def _state(self) -> WorkerState:
        return WorkerState(
            running=len(self._running), modules=dict(self._places), used_modules=self._used_modules()
        )

    def _load(
        self, digest: str, kind: str, *, wrong: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT
    ) -> ModulePlace:
        """wrong: the status where the module itself is wrong."""
        kind = _known(kind)
        if not self._folder(digest).is_dir():
            raise _absent(digest)
        if not _has_weights(self._folder(digest), kind):
            raise Refused(wrong, f"module: the engine refuses it: no {kind}")
        self._refuse(digest, wrong)
        self._places[digest] = ModulePlace.DEVICE
        self.log.changed.set()
        return ModulePlace.DEVICE

    def _refuse(self, name: str, wrong: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT) -> None:
        """Raises what is scripted for a digest or a method."""
        if name in self.refuses:
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, self.refuses[name])
        if name in self.wrong:
            raise Refused(wrong, self.wrong[name])

    def _place(self, digest: str) -> ModulePlace:
        here = ModulePlace.DISK if self._folder(digest).is_dir() else ModulePlace.ABSENT
        return self._places.get(digest, here)

    def _folder(self, digest: str) -> Path:
        return self.modules_root / "modules" / digest

    def _used_modules(self) -> frozenset[str]:
        return frozenset(digest for used in self._running.values() for digest in used)


def _known(kind: str) -> ModuleKind:
    try:
        return kind_of_name(kind)
    except ValueError as error:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from None


def _has_weights(folder: Path, kind: ModuleKind) -> bool:
    """The weights alone tell the kinds apart: tests leave the other files out."""
    weights = [name for name in KINDS[kind].files if name.endswith(".safetensors")]
    return all((folder / name).is_file() for name in weights)


def _absent(digest: str) -> Refused:
    return Refused(grpc.StatusCode.FAILED_PRECONDITION, f"this worker does not have the module: {digest}")


def _joined(first: AnswerPart, second: AnswerPart) -> AnswerPart:
    return replace(
        second,
        text=first.text + second.text,
        token_ids=(*first.token_ids, *second.token_ids),
        logprobs=(*first.logprobs, *second.logprobs),
    )
