"""Frozen values that the parts of memserve pass to each other. No I/O and no imports from the rest."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Self


class OpenEnum(StrEnum):
    """An enumeration that a newer memserve may have more members of. A client reads those as UNKNOWN."""

    @classmethod
    def known(cls) -> tuple[Self, ...]:
        """Every member that means something: all but UNKNOWN, which is never sent and never stored."""
        return tuple(member for member in cls if member.name != "UNKNOWN")


class Role(StrEnum):
    """Who speaks in a conversation."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


class FinishReason(OpenEnum):
    """Why an answer ended."""

    STOP = "stop"
    LENGTH = "length"
    UNKNOWN = "unknown"


class RecallOutcome(OpenEnum):
    """What became of the vector recall of a request."""

    NOT_ASKED = "not_asked"
    FOUND = "found"
    EMPTY = "empty"
    LATE = "late"
    UNAVAILABLE = "unavailable"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of the conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Memory:
    """A text memory with its provenance. `created_s` is seconds since the epoch."""

    memory_id: str
    namespace: str
    text: str
    source: str
    keywords: tuple[str, ...]
    created_s: float


@dataclass(frozen=True, slots=True)
class ScoredMemory:
    """A search hit: the fused score, and each half's own (None where that half did not find it)."""

    memory: Memory
    score: float
    dense_score: float | None
    bm25_score: float | None


class ModuleKind(OpenEnum):
    """How a module's weights are checked, loaded and applied."""

    LORA = "lora"
    LOGIT_EXPERT = "logit_expert"
    UNKNOWN = "unknown"


class ModulePlace(OpenEnum):
    """Where a worker has a module's weights: in a slot of the device, in the engine's host memory, in its
    directory, or not at all.
    """

    DEVICE = "device"
    HOST = "host"
    DISK = "disk"
    ABSENT = "absent"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class WeightFigures:
    """What a module's weights look like.

    delta_norm: Frobenius norm of what is added to the base's weights (of an expert, of its weights).
    sparsity: share of the entries under a thousandth of the largest of their matrix. effective_rank: exp of
    the entropy of the normalised singular values, mean over the matrices.
    """

    delta_norm: float
    sparsity: float
    effective_rank: float


@dataclass(frozen=True, slots=True)
class GateFigure:
    """One of the gate's comparisons. base, module: shares of right answers, or calibration errors. probes:
    how many were asked.
    """

    name: str
    base: float
    module: float
    rule: str
    holds: bool
    probes: int


@dataclass(frozen=True, slots=True)
class GateReport:
    """What the gate found. probes_digest: empty when the version has no probes."""

    passed: bool
    figures: tuple[GateFigure, ...]
    worker_id: str
    at_s: float
    probes_digest: str


@dataclass(frozen=True, slots=True)
class ModuleVersion:
    """One immutable version of a module. `digest`: sha256 over its canonical content, hex; `version` counts
    from 1.

    base_digest: of the model that it was checked against. parents: digests of the versions that it was
    composed from. recipe: how it was made, JSON or text. moves_logits: a worker has seen it change the canary
    prompts' logits. gate: the newest report, None before one. warning: what whoever published it should know
    of its files; "" for nothing.
    """

    module: str
    version: int
    digest: str
    kind: ModuleKind
    base_digest: str
    rank: int
    target_modules: tuple[str, ...]
    size_bytes: int
    created_s: float
    author: str
    sources: tuple[str, ...]
    parents: tuple[str, ...]
    recipe: str
    notes: str
    figures: WeightFigures
    probes_digest: str
    moves_logits: bool = False
    gate: GateReport | None = None
    warning: str = ""

    @property
    def reference(self) -> str:
        return f"{self.module}@{self.version}"


@dataclass(frozen=True, slots=True)
class TrafficShare:
    """A version's share of an alias. `weight` is relative to the others'."""

    version: int
    weight: float


@dataclass(frozen=True, slots=True)
class Alias:
    """A name for one version, or for several that share its traffic. `revision` rises by one with every
    change.
    """

    name: str
    targets: tuple[TrafficShare, ...]
    revision: int
    changed_s: float


@dataclass(frozen=True, slots=True)
class AliasChange:
    """An entry of an alias's history. action: promote, rollback, split, canary_rollback, or drop (no
    targets).
    """

    revision: int
    targets: tuple[TrafficShare, ...]
    at_s: float
    principal: str
    action: str
    reason: str
    forced: bool


@dataclass(frozen=True, slots=True)
class Module:
    """A module: a name, a kind, versions, aliases."""

    name: str
    kind: ModuleKind
    newest_version: int
    versions: int
    aliases: tuple[Alias, ...]


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """A change: who, when, what, and what it was before and after (JSON; empty for nothing)."""

    event_id: str
    at_s: float
    tenant: str
    principal: str
    action: str
    module: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class UsedModule:
    """A module version in an answer, and why this one. `alpha`: of a logit expert."""

    name: str
    version: int
    digest: str
    kind: ModuleKind
    reason: str
    alpha: float = 0.0


@dataclass(frozen=True, slots=True)
class WorkerResidency:
    """Where a worker has a version. refusal: why it could not load it."""

    worker_id: str
    place: ModulePlace
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. Temperature 0 is greedy; `logprobs` asks for each chosen token's
    log-probability.

    Before `min_tokens` the answer does not end by itself.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    min_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Slo:
    """What the caller wants: time to first token and time per further token, milliseconds. None: no wish."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None


@dataclass(frozen=True, slots=True)
class CachedTokens:
    """Prompt tokens whose KV was not computed again, by where it was found."""

    device: int = 0
    host: int = 0
    redis: int = 0

    @property
    def total(self) -> int:
        return self.device + self.host + self.redis


@dataclass(frozen=True, slots=True)
class Usage:
    """What an answer took. `tpot_ms`: the mean over the tokens after the first, None for an answer of one
    token.
    """

    prompt_tokens: int
    output_tokens: int
    cached: CachedTokens
    ttft_ms: float
    tpot_ms: float | None
    slo_met: bool
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class HeldPrefix:
    """A prefix's leading tokens in a worker's own memory: the device's, and the device's or the host's."""

    worker_id: str
    device_tokens: int
    held_tokens: int


@dataclass(frozen=True, slots=True)
class Warmth:
    """How far a warm-up is. stored_tokens: in Redis, full chunks only."""

    worker_id: str
    prompt_tokens: int
    computed_tokens: int
    stored_tokens: int
    done: bool = False


class KeyRole(StrEnum):
    """What the holder of an API key may do, from least to most; `gateway/access/roles.py` says which RPCs."""

    READ = "read"
    ASK = "ask"
    WRITE = "write"
    ADMIN = "admin"

    def covers(self, needed: KeyRole) -> bool:
        order = tuple(KeyRole)
        return order.index(self) >= order.index(needed)


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who calls. `cache_salt` keeps one tenant's KV from another; it is derived, never sent by a client.

    principal: who of the tenant, for the audit.
    """

    name: str
    cache_salt: str
    principal: str = ""
    role: KeyRole = KeyRole.ADMIN

    @property
    def is_admin(self) -> bool:
        return self.role is KeyRole.ADMIN


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """How a worker's KV is named. Workers of different layouts have nothing for each other.

    namespace: digest under which the KV lives in Redis. block_tokens: tokens in a block. blocks_per_chunk:
    blocks in one Redis value.
    """

    namespace: str
    block_tokens: int
    blocks_per_chunk: int

    @property
    def chunk_tokens(self) -> int:
        return self.block_tokens * self.blocks_per_chunk


@dataclass(frozen=True, slots=True)
class WorkerLease:
    """What a worker says of itself in the registry.

    address: host:port of its gRPC data plane. pid: of the process that owns the engine.
    namespace, block_tokens, blocks_per_chunk: its CacheLayout.
    shares_kv: False when its golden prefix came back different, so that it neither stores KV in Redis nor
    loads any. limits: what of memserve it does not do, and why, for people; "" for nothing.
    """

    worker_id: str
    address: str
    metrics_address: str
    pid: int
    model: str
    model_digest: str
    tokenizer_digest: str
    namespace: str
    block_tokens: int
    blocks_per_chunk: int
    max_context_tokens: int
    max_concurrent: int
    started_s: float
    shares_kv: bool = True
    limits: str = ""

    @property
    def layout(self) -> CacheLayout:
        return CacheLayout(self.namespace, self.block_tokens, self.blocks_per_chunk)


@dataclass(frozen=True, slots=True)
class Expert:
    """A logit expert to decode with: logits + alpha * (expert's - anti-expert's)."""

    reference: str
    alpha: float = 1.0


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A checked request for one answer. Empty `model`, `module`, `worker_id` and `session` mean: the served
    one, none, any, none.
    """

    messages: tuple[Message, ...]
    sampling: Sampling
    model: str = ""
    module: str = ""
    namespaces: tuple[str, ...] = ()
    recall_limit: int = 0
    recall_timeout_s: float = 0.0
    slo: Slo = Slo()
    worker_id: str = ""
    expert: Expert | None = None
    session: str = ""


@dataclass(frozen=True, slots=True)
class Route:
    """The head of an answer's receipt: where the request went, why, and with which memories."""

    request_id: str
    model: str
    worker_id: str
    reason: str
    predicted_ttft_ms: float
    prompt_tokens: int
    expected_cached_tokens: int
    modules: tuple[UsedModule, ...]
    recall_outcome: RecallOutcome
    passages: tuple[ScoredMemory, ...]
    # Memories of the recalled namespaces that were acknowledged and that the vector store has lost.
    lost_memories: int = 0


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the answer. `logprobs` has one entry a token when asked for, else none."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
