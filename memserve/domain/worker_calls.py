"""What a gateway asks of a worker, and what it hears.

`gateway/workers/calls.py` speaks to a worker over gRPC. Tests keep a worker in memory. All of them pass
the same contract, `tests/contract`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from memserve.domain.answers import FinishReason, RefusalReason, Sampling
from memserve.domain.distilling import DistilProgress, Recipe
from memserve.domain.modules import ModuleKind, ModulePlace
from memserve.domain.prefixes import CachedTokens, FreedMemory
from memserve.domain.tenants import Priority

REASON, RETRY_AFTER = "memserve-reason", "retry-after-s"
"""The trailing metadata of a refusal."""


PLACEHOLDER_TOKEN = 0
"""Stands at the positions of a cartridge or a soft prompt. What it means does not count."""


class WorkerFailure(Exception):
    """A call to a worker has failed. This class alone: the worker lives and cannot do it now."""

    def __init__(self, worker_id: str, detail: str) -> None:
        super().__init__(worker_id, detail)
        self.worker_id = worker_id
        self.detail = detail

    def __str__(self) -> str:
        return self.detail


class WorkerDied(WorkerFailure):
    """The worker, or the way to it, is gone. Another worker may answer."""


class WorkerFaulty(WorkerDied):
    """The worker's own code has raised. Callers treat it as dead."""


class WorkerLate(WorkerFailure):
    """The call's time is up."""


class WorkerFull(WorkerFailure):
    """The worker has too much to do. It says why, and when the request may come again."""

    def __init__(self, worker_id: str, detail: str, reason: RefusalReason, retry_after_s: float) -> None:
        super().__init__(worker_id, detail)
        self.args = (worker_id, detail, reason, retry_after_s)  # what a copy is made of
        self.reason = reason
        self.retry_after_s = retry_after_s


class WorkerRefused(WorkerFailure):
    """A module of the request cannot be had on this worker, or not now. Another worker may have it."""


class WrongRequest(WorkerFailure):
    """No worker will take the request."""


class StrangeWorker(WorkerFailure):
    """The worker takes this gateway for a stranger."""

    def __str__(self) -> str:
        return (
            f"worker {self.worker_id} refuses this gateway: their salt_key differs; give all gateways and "
            f"workers the same ({self.detail})"
        )


@dataclass(frozen=True, slots=True)
class AppliedModule:
    """A module version in one answer."""

    digest: str
    kind: ModuleKind
    strength: float = 1.0
    """Of a logit expert: logits + strength * (expert's - anti-expert's)."""


@dataclass(frozen=True, slots=True)
class WorkerRequest:
    """One answer that a worker is asked for."""

    request_id: str
    token_ids: Sequence[int]
    """[prompt_tokens]. With a cartridge or a soft prompt they begin with as many PLACEHOLDER_TOKENs as it has
    positions."""
    tenant: str
    """The KV that reaches Redis is counted for this tenant."""
    cache_salt: str
    sampling: Sampling
    modules: tuple[AppliedModule, ...] = ()
    store_whole_prompt: bool = False
    """Store all of the prompt's KV in Redis at its first use, and what is in the engine's memory already."""
    priority: Priority = Priority.NORMAL
    first_token_s: float | None = None
    """The time that is left for the first token. None: no wish."""
    refuse_late: bool = False
    """Refuse the request where the first token would come later."""
    do_not_queue: bool = False
    """Refuse the request where the engine cannot begin with it now."""
    cached_tokens: int = 0
    """Prompt tokens that the gateway expects not to be computed."""


@dataclass(frozen=True, slots=True)
class AnswerPart:
    """A step of an answer."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    """One for each token where the request asks for them."""
    cached: CachedTokens | None = None
    """Set on the last part."""
    finish_reason: FinishReason | None = None
    """Set on the last part."""


SCORED_TOKENS_MAX = 512
"""Of one continuation."""


@dataclass(frozen=True, slots=True)
class ScoringRequest:
    """Tokens whose log-probabilities behind a prompt are asked for."""

    request_id: str
    token_ids: Sequence[int]
    """[prompt_tokens]"""
    continuation: Sequence[int]
    """[1 to SCORED_TOKENS_MAX tokens]. With the prompt it fits into the context."""
    tenant: str
    cache_salt: str
    modules: tuple[AppliedModule, ...] = ()
    """Those that do not move log-probabilities change nothing."""
    priority: Priority = Priority.BACKGROUND
    cached_tokens: int = 0
    """Prompt tokens that the gateway expects not to be computed."""

    @property
    def answer(self) -> WorkerRequest:
        """What the engine does for it: an answer whose tokens are given."""
        return WorkerRequest(
            request_id=self.request_id,
            token_ids=self.token_ids,
            tenant=self.tenant,
            cache_salt=self.cache_salt,
            sampling=Sampling(max_tokens=len(self.continuation), logprobs=True),
            modules=self.modules,
            priority=self.priority,
            cached_tokens=self.cached_tokens,
        )


@dataclass(frozen=True, slots=True)
class TokenScores:
    """What a model makes of given tokens."""

    logprobs: tuple[float, ...]
    """[continuation tokens], natural logarithms."""
    cached: CachedTokens
    """Of the prompt."""


@dataclass(frozen=True, slots=True)
class HeldBlocks:
    """Leading blocks of a prompt in a worker's own memory."""

    device: int
    held: int
    """In the device's memory or the host's."""


@dataclass(frozen=True, slots=True)
class CompositionRequest:
    """A new module from others. rank, density: 0 for the method's own."""

    method: str
    parents: tuple[tuple[str, float], ...]
    """Digests and weights."""
    rank: int = 0
    density: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class ComposeProgress:
    """How far a composition is."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class ComposedPiece:
    """The next bytes of a file of the result."""

    file_name: str
    content: bytes


@dataclass(frozen=True, slots=True)
class ComposeRecipe:
    """What the method measured, as JSON. The last event of a composition."""

    recipe: str


@dataclass(frozen=True, slots=True)
class DistillationRequest:
    """Memories to distil."""

    kind: ModuleKind
    texts: tuple[str, ...]
    """Of the memories, each by itself."""
    recipe: Recipe
    seed: int = 0
    budget_s: float = 0.0
    """Processor seconds. 0: what suits the model's size."""
    recall_template: str = ""
    """The source of the template that puts passages into prompts."""
    parent_digest: str = ""
    """The LoRA that is trained on. Empty: a new one."""
    old_texts: tuple[str, ...] = ()
    """Of the memories that the parent was made of."""
    memory_keys: tuple[str, ...] = ()
    """Names of the memories, which say nothing of their texts."""


@dataclass(frozen=True, slots=True)
class DistilReport:
    """What was trained on and what it cost, as JSON. The last event of a distillation."""

    report: str


@dataclass(frozen=True, slots=True)
class StepCosts:
    """What the steps of an engine cost, in seconds: the terms of `policy/routing/costs.py`."""

    step_s: float
    """Every step."""
    token_s: float
    """Each prompt token."""
    context_s: float
    """Each prompt token, for each token before it."""
    answer_s: float
    """Each answer of the step."""
    kv_token_s: float
    """Each token of the answers' KV."""
    step_limit_s: float
    """A step takes no more prompt tokens than fit into this time."""


@dataclass(frozen=True, slots=True)
class EngineState:
    """What an engine and the waiting room in front of it have to do, at the time of the report."""

    costs: StepCosts
    """As they are lately."""
    waiting: Mapping[int, Sequence[float]] = field(default_factory=dict)
    """By band: [buckets] seconds of the engine that wait, by deadline. `policy/routing/load.py` has the
    buckets; they begin at the time of the report."""
    prefill_s: float = 0.0
    """Time of the engine for the prompts that it has not computed yet."""
    seat_s: float = 0.0
    """How long it takes until an answer leaves its seat, where all are taken."""
    answers: int = 0
    kv_tokens: int = 0
    """Of the answers."""
    free_kv_tokens: int = 0
    requests: int = 0
    """Unfinished ones, the waiting ones too."""
    queued_tokens: int = 0
    """Prompt tokens that are yet to be computed, the waiting requests' too."""
    recent: frozenset[str] = frozenset()
    """Ids of the requests that came within RECENT_REQUESTS_S."""


RECENT_REQUESTS_S = 0.5


@dataclass(frozen=True, slots=True)
class WorkerState:
    """What a worker says of itself, four times a second."""

    running: int = 0
    waiting: int = 0
    prefill_tokens_per_s: float = 0.0
    """Measured while prefilling; 0 before the first measurement."""
    decode_tokens_per_s: float = 0.0
    """Per request; 0 before the first measurement."""
    pending_prefill_tokens: int = 0
    """Prompt tokens of accepted requests that are yet to be computed."""
    modules: Mapping[str, ModulePlace] = field(default_factory=dict)
    """What the engine holds, by digest. A place that this gateway has no word for is left out."""
    used_modules: frozenset[str] = frozenset()
    """Digests of the modules that unfinished requests use."""
    engine: EngineState | None = None
    """None: of a worker that does not say it."""


class BlockChange(StrEnum):
    """What happened to KV blocks."""

    RESET = "reset"
    """Everything held before is gone; the event's keys are all that is held now."""
    STORED = "stored"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class BlockEvent:
    """A numbered change of the KV blocks that a worker holds."""

    epoch: int
    """Changes with every start of the worker."""
    sequence: int
    """Rises by one with every event."""
    change: BlockChange
    keys: Sequence[bytes]


class WorkerCalls(Protocol):
    """The calls to one worker. Each raises WorkerFailure, and nothing else.

    Closing the iterator of a stream cancels the call, and with it the worker's work.
    """

    def generate(self, request: WorkerRequest, timeout_s: float | None) -> AsyncGenerator[AnswerPart, None]:
        """Stream one answer. The last part has a finish reason; a stream that ends without is WorkerDied."""

    async def score_tokens(self, request: ScoringRequest, timeout_s: float | None) -> TokenScores:
        """The log-probabilities of given tokens. WrongRequest: there are none, too many, or unknown ones."""

    async def lookup_blocks(self, keys: Sequence[bytes], timeout_s: float) -> HeldBlocks:
        """How many of a prompt's leading blocks the worker holds. keys: [blocks], in order."""

    async def forget_memories(self, tenant: str, keys: Sequence[str], timeout_s: float) -> FreedMemory:
        """Remove all KV of a tenant from the worker's own memory, and what trainings keep of these memories.

        Requests under way keep their KV to their end. keys: as DistillationRequest has them; none: KV only.
        """

    async def load_module(self, digest: str, kind: ModuleKind, *, pin: bool, timeout_s: float) -> ModulePlace:
        """Load a module. pin: keep it when others need room. WrongRequest: the module itself is wrong."""

    async def unload_module(
        self, digest: str, kind: ModuleKind, *, forget: bool, timeout_s: float
    ) -> ModulePlace:
        """Take a module out of the engine. forget: delete the worker's copy of its files too."""

    async def module_places(self, digests: Sequence[str], timeout_s: float) -> list[ModulePlace]:
        """[digests] places. Asks neither the engine nor the module store."""

    async def try_module(self, digest: str, kind: ModuleKind, timeout_s: float) -> float:
        """The largest change of a log-probability that the module makes over the canary prompts."""

    async def set_pace(self, window_s: float, timeout_s: float) -> None:
        """How long tokens may wait for others from now on. 0: not at all. To be said again every second."""

    def compose(
        self, request: CompositionRequest, timeout_s: float | None = None
    ) -> AsyncGenerator[ComposeProgress | ComposedPiece | ComposeRecipe, None]:
        """Compose modules away from the engine: progress, then the files in pieces, then the recipe."""

    def distil(
        self, request: DistillationRequest, timeout_s: float | None = None
    ) -> AsyncGenerator[DistilProgress | ComposedPiece | DistilReport, None]:
        """Distil memories away from the engine: progress, then the files in pieces, then the report.

        WrongRequest: what is asked for cannot be distilled.
        """

    def watch(
        self, epoch: int, after_sequence: int, timeout_s: float | None = None
    ) -> AsyncGenerator[WorkerState | BlockEvent, None]:
        """Block events after a number where the worker still has them, else from a RESET; states between.

        epoch: the worker's epoch that `after_sequence` belongs to; 0 the first time.
        """

    async def close(self) -> None:
        """Calls under way end as WorkerDied."""
