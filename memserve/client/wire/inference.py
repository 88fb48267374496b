"""The client's half of the wire: `memserve.v1` messages from and to domain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memserve.client.arguments import strings
from memserve.client.wire.modules import place_of
from memserve.domain import (
    CachedTokens,
    Expert,
    FinishReason,
    Memory,
    Message,
    ModuleKind,
    ModulePlace,
    RecallOutcome,
    Role,
    Route,
    Sampling,
    ScoredMemory,
    Slo,
    TextDelta,
    Usage,
    UsedModule,
)
from memserve.errors import UsageError
from memserve.pb.v1 import inference_pb2, memory_pb2, status_pb2

Event = Route | TextDelta | Usage
# A string is one message of the user. A mapping has `role` and `content`, as chat APIs have them.
Conversation = str | Message | Sequence[Message | Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer with its receipt. `logprobs`: one a token when asked for."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    route: Route
    usage: Usage


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A worker as the gateway sees it. modules: what its engine holds, by digest."""

    worker_id: str
    address: str
    metrics_address: str
    pid: int
    ready: bool
    running: int
    waiting: int
    known_blocks: int
    prefill_tokens_per_s: float
    modules: dict[str, ModulePlace]
    shares_kv: bool
    limits: str


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
    # Acknowledged, and lost by the vector store: its files are damaged.
    lost_memories: int
    # Durable in the registry, and not yet known to be in the vector store; -1: the registry does not say.
    waiting_writes: int
    # The disk that has too little room; "": none.
    short_disk: str
    embedder: str


ROLES = {
    Role.SYSTEM: inference_pb2.ROLE_SYSTEM,
    Role.USER: inference_pb2.ROLE_USER,
    Role.ASSISTANT: inference_pb2.ROLE_ASSISTANT,
}


def turns(messages: Conversation) -> list[inference_pb2.Message]:
    """Raises UsageError."""
    if isinstance(messages, str):
        messages = [Message(Role.USER, messages)]
    elif isinstance(messages, Message | Mapping):
        messages = [messages]
    return [_turn(number, entry) for number, entry in enumerate(messages)]


def _turn(number: int, entry: Message | Mapping[str, str]) -> inference_pb2.Message:
    field = f"messages[{number}]"
    role: str
    if isinstance(entry, Message):
        role, content = entry.role, entry.content
    elif isinstance(entry, Mapping) and set(entry) == {"role", "content"}:
        role, content = entry["role"], entry["content"]
    else:
        raise UsageError(field, "must be a Message, or a mapping with `role` and `content`")
    if not isinstance(content, str):
        raise UsageError(f"{field}.content", f"must be a string, not {type(content).__name__}")
    if role not in list(Role):
        raise UsageError(f"{field}.role", f"must be one of {', '.join(Role)}, not {role!r}")
    return inference_pb2.Message(role=ROLES[Role(role)], content=content)


def remember_request(
    namespace: str, text: str, source: str, keywords: str | Sequence[str], memory_id: str
) -> memory_pb2.RememberRequest:
    """Raises UsageError."""
    return memory_pb2.RememberRequest(
        namespace=namespace,
        text=text,
        source=source,
        keywords=strings("keywords", keywords),
        memory_id=memory_id,
    )


def generate_request(
    messages: Conversation,
    *,
    module: str = "",
    namespaces: str | Sequence[str] = (),
    recall_limit: int = 0,
    recall_timeout_ms: int = 0,
    sampling: Sampling | None = None,
    slo: Slo | None = None,
    model: str = "",
    worker_id: str = "",
    expert: Expert | None = None,
    session: str = "",
) -> inference_pb2.GenerateRequest:
    """The request message. A string is one message of the user. module: a reference, as of `ModuleCalls`.
    Raises UsageError.
    """
    sampling = sampling or Sampling(max_tokens=0)
    slo = slo or Slo()
    return inference_pb2.GenerateRequest(
        model=model,
        messages=turns(messages),
        module=module,
        recall=inference_pb2.Recall(
            namespaces=strings("namespaces", namespaces), limit=recall_limit, timeout_ms=recall_timeout_ms
        ),
        sampling=inference_pb2.Sampling(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
            stop=strings("stop", sampling.stop),
            logprobs=sampling.logprobs,
            min_tokens=sampling.min_tokens,
        ),
        slo=inference_pb2.Slo(ttft_ms=slo.ttft_ms or 0, tpot_ms=slo.tpot_ms or 0),
        worker_id=worker_id,
        experts=[inference_pb2.Expert(reference=expert.reference, alpha=expert.alpha)]
        if expert is not None
        else [],
        session=session,
    )


def event_of(response: inference_pb2.GenerateResponse) -> Event:
    """The domain value of one streamed message."""
    match response.WhichOneof("event"):
        case "text":
            return TextDelta(
                response.text.text, tuple(response.text.token_ids), tuple(response.text.logprobs)
            )
        case "usage":
            usage = response.usage
            return Usage(
                prompt_tokens=usage.prompt_tokens,
                output_tokens=usage.output_tokens,
                cached=CachedTokens(
                    usage.cached_tokens.device, usage.cached_tokens.host, usage.cached_tokens.redis
                ),
                ttft_ms=usage.ttft_ms,
                tpot_ms=usage.tpot_ms if usage.HasField("tpot_ms") else None,
                slo_met=usage.slo_met,
                finish_reason=FinishReason(
                    inference_pb2.FinishReason.Name(usage.finish_reason)
                    .removeprefix("FINISH_REASON_")
                    .lower()
                ),
            )
    route = response.route
    return Route(
        request_id=route.request_id,
        model=route.model,
        worker_id=route.worker_id,
        reason=route.reason,
        predicted_ttft_ms=route.predicted_ttft_ms,
        prompt_tokens=route.prompt_tokens,
        expected_cached_tokens=route.expected_cached_tokens,
        modules=tuple(
            UsedModule(used.name, used.version, used.digest, ModuleKind(used.kind), used.reason, used.alpha)
            for used in route.modules
        ),
        recall_outcome=RecallOutcome(
            inference_pb2.RecallOutcome.Name(route.recall_outcome).removeprefix("RECALL_OUTCOME_").lower()
        ),
        passages=tuple(scored_of(hit) for hit in route.passages),
        lost_memories=route.lost_memories,
    )


def collect(events: Sequence[Event]) -> Answer:
    """Put a finished stream together. A later Route (after a retry elsewhere) replaces an earlier one."""
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


def memory_of(value: memory_pb2.Memory) -> Memory:
    return Memory(
        value.memory_id, value.namespace, value.text, value.source, tuple(value.keywords), value.created_s
    )


def scored_of(hit: memory_pb2.ScoredMemory) -> ScoredMemory:
    return ScoredMemory(
        memory=memory_of(hit.memory),
        score=hit.score,
        dense_score=hit.dense_score if hit.HasField("dense_score") else None,
        bm25_score=hit.bm25_score if hit.HasField("bm25_score") else None,
    )


def status_of(value: status_pb2.GetStatusResponse) -> Status:
    workers = tuple(
        WorkerStatus(
            worker_id=w.worker_id,
            address=w.address,
            metrics_address=w.metrics_address,
            pid=w.pid,
            ready=w.ready,
            running=w.running,
            waiting=w.waiting,
            known_blocks=w.known_blocks,
            prefill_tokens_per_s=w.prefill_tokens_per_s,
            modules={module.digest: place_of(module.place) for module in w.modules},
            shares_kv=w.shares_kv,
            limits=w.limits,
        )
        for w in value.workers
    )
    return Status(
        version=value.version,
        model=value.model,
        model_digest=value.model_digest,
        max_context_tokens=value.max_context_tokens,
        workers=workers,
        redis_ok=value.redis_ok,
        vector_store_ok=value.vector_store_ok,
        modules=value.modules,
        memories=value.memories,
        lost_memories=value.lost_memories,
        waiting_writes=value.waiting_writes,
        short_disk=value.short_disk,
        embedder=value.embedder,
    )
