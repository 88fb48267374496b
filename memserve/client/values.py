"""Values that only the client has. All other values are in `memserve.domain`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from memserve.domain import (
    DistilPlan,
    DistilProgress,
    HeldPrefix,
    Message,
    ModulePlace,
    ReindexProgress,
    Route,
    TextDelta,
    Usage,
)

Event = Route | TextDelta | Usage
Conversation = str | Message | Mapping[str, str] | Sequence[Message | Mapping[str, str]]
"""A string is one message of the user. A mapping has `role` and `content`, as chat APIs have them."""
Progress = Callable[[int, int], None]
"""Called with how much is done and how much there is to do."""


def silent(done: int, total: int) -> None:
    """A Progress that says nothing."""


DistilWatch = Callable[[DistilPlan | DistilProgress], None]
"""Called with the plan of a distillation, and then with how far it is."""


def silent_distil(event: DistilPlan | DistilProgress) -> None:
    """A DistilWatch that says nothing."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer with its receipt."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """The log-probability of each token, where the request asked for them."""
    route: Route
    usage: Usage


def collect(events: Sequence[Event]) -> Answer:
    """Make an answer of a finished stream. After a retry on another worker, only the last Route counts."""
    routes = [event for event in events if isinstance(event, Route)]
    deltas = [event for event in events if isinstance(event, TextDelta)]
    usages = [event for event in events if isinstance(event, Usage)]
    return Answer(
        text="".join(delta.text for delta in deltas),
        token_ids=tuple(token for delta in deltas for token in delta.token_ids),
        logprobs=tuple(logprob for delta in deltas for logprob in delta.logprobs),
        route=routes[-1],
        usage=usages[-1],
    )


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A worker as the gateway sees it."""

    worker_id: str
    address: str
    metrics_address: str
    pid: int
    ready: bool
    """The gateway sends it requests."""
    running: int
    """Requests in its engine's batch."""
    waiting: int
    """Requests that wait for a place in the batch."""
    known_blocks: int
    """KV blocks that the worker holds, as far as the gateway knows."""
    prefill_tokens_per_s: float
    modules: dict[str, ModulePlace]
    """What its engine holds of the caller's modules, by digest."""
    shares_kv: bool
    """False: the worker does not store KV in Redis or load it. At its start KV came back different."""
    limits: str
    """The features of memserve that the worker lacks, and why, for a person. Empty: none."""


@dataclass(frozen=True, slots=True)
class Status:
    """What runs now."""

    version: str
    model: str
    model_digest: str
    max_context_tokens: int
    workers: tuple[WorkerStatus, ...]
    redis_ok: bool
    vector_store_ok: bool
    modules: int
    memories: int
    lost_memories: int
    """Memories that were acknowledged and that the vector store has lost: its files are damaged."""
    waiting_writes: int
    """Writes that are durable in the registry and not yet known to be in the vector store.

    -1: the registry does not say.
    """
    short_disk: str
    """The disk that has too little room. Empty: none."""
    embedder: str
    """The model that embeds memories and queries."""
    forecast_mape: float = 0.0
    """Predictions of the time to first token, lately: mean of |prediction - actual| / actual. 0: none yet."""
    forecast_bias: float = 0.0
    """Mean of (prediction - actual) / actual. Below 0: too hopeful."""
    forecast_coverage: float = 0.0
    """The part of the first tokens that came within the interval of their prediction."""
    recall_template: str = ""
    """Where the template of recalled passages comes from: setting, model or default."""
    recall_template_digest: str = ""
    """sha256 of the template, hex. Gateways with the same template make the same prompts."""
    prompt_changes: str = ""
    """How conversations are changed for the model's chat template, for people. Empty: not at all."""
    reranker: str = ""
    """The model that puts what searches find in order. Empty: none does."""
    reindexing: ReindexProgress | None = None
    """While all memories are embedded again by another model."""


@dataclass(frozen=True, slots=True)
class CachedPrefix:
    """Where a prefix is cached."""

    prompt_tokens: int
    chunk_tokens: int
    """Tokens in a chunk. Redis has full chunks only."""
    redis_tokens: int | None
    """Leading tokens in Redis. None: Redis does not answer."""
    workers: tuple[HeldPrefix, ...]


@dataclass(frozen=True, slots=True)
class Evicted:
    """What an eviction did."""

    removed_chunks: int
    """Chunks removed from Redis."""
    pinned_chunks: int
    """Chunks that stay because they are pinned."""


@dataclass(frozen=True, slots=True)
class CacheUsage:
    """Bytes in Redis, headers included."""

    stored_bytes: int
    """Bytes of the caller's tenant."""
    chunks: int
    pinned_bytes: int
    tenant_quota_bytes: int
    """0: no quota."""
    cache_stored_bytes: int
    """Bytes of all tenants."""
    cache_quota_bytes: int
    """0: no quota."""
