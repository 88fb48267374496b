"""Messages of `InferenceService`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memserve.client.arguments import strings
from memserve.client.values import Conversation, Event
from memserve.client.wire.memories import options_message, search_query
from memserve.client.wire.memory_values import member, scored_of, skipped_of
from memserve.client.wire.recalled import OUTCOMES, fits_of, parts_of
from memserve.domain import (
    CachedTokens,
    ExcludedWorker,
    Expert,
    Explanation,
    FinishReason,
    Message,
    ModuleKind,
    ModuleUse,
    OutdatedFact,
    Priority,
    RecallOutcome,
    Role,
    Route,
    RouteCandidate,
    RungCost,
    Sampling,
    Slo,
    TextDelta,
    Usage,
    UsedModule,
)
from memserve.domain.kinds import KINDS
from memserve.errors import UsageError
from memserve.pb.v1 import inference_pb2 as pb

# What tools return comes over HTTP only.
ROLES: dict[Role, pb.Role] = {
    role: getattr(pb, f"ROLE_{role.name}") for role in Role if role is not Role.TOOL
}
PRIORITIES: dict[Priority, pb.Priority] = {
    priority: getattr(pb, f"PRIORITY_{priority.name}") for priority in Priority.of_callers()
}
FINISH_REASONS: dict[int, FinishReason] = {
    getattr(pb, f"FINISH_REASON_{reason.name}"): reason for reason in FinishReason.known()
}


def recall_message(
    namespaces: str | Sequence[str],
    limit: int,
    timeout_ms: int,
    options: Mapping[str, Any],
    choose_module: bool,
    skip_pinned: bool,
) -> pb.Recall:
    """options: fields of SearchQuery. Raises UsageError."""
    return pb.Recall(
        namespaces=strings("namespaces", namespaces),
        limit=limit,
        timeout_ms=timeout_ms,
        options=options_message(search_query((), "", 0, options)) if options else None,
        choose_module=choose_module,
        skip_pinned=skip_pinned,
    )


def recall_request(
    messages: Conversation,
    recall: pb.Recall,
    model: str,
    module: str,
    modules: str | ModuleUse | Sequence[str | ModuleUse],
) -> pb.RecallRequest:
    """Raises UsageError."""
    return pb.RecallRequest(
        model=model, messages=turns(messages), module=module, modules=_module_uses(modules), recall=recall
    )


def turns(messages: Conversation) -> list[pb.Message]:
    """Raises UsageError."""
    if isinstance(messages, str):
        messages = [Message(Role.USER, messages)]
    elif isinstance(messages, Message | Mapping):
        messages = [messages]
    return [_turn(number, entry) for number, entry in enumerate(messages)]


def _turn(number: int, entry: Message | Mapping[str, str]) -> pb.Message:
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
    if role not in ROLES:
        raise UsageError(f"{field}.role", f"must be one of {', '.join(ROLES)}, not {role!r}")
    return pb.Message(role=ROLES[Role(role)], content=content)


def generate_request(
    messages: Conversation,
    *,
    module: str = "",
    expert: Expert | None = None,
    modules: str | ModuleUse | Sequence[str | ModuleUse] = (),
    namespaces: str | Sequence[str] = (),
    recall_limit: int = 0,
    recall_timeout_ms: int = 0,
    recall_options: Mapping[str, Any] | None = None,
    choose_module: bool = False,
    skip_pinned: bool = False,
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop: str | Sequence[str] | None = None,
    logprobs: bool | None = None,
    min_tokens: int | None = None,
    json_schema: str | None = None,
    sampling: Sampling | None = None,
    slo: Slo | None = None,
    model: str = "",
    worker_id: str = "",
    session: str = "",
    priority: Priority | str | None = None,
    do_not_queue: bool = False,
    keep_prompt: bool = False,
) -> pb.GenerateRequest:
    """The request for the arguments of `Client.generate`. Raises UsageError."""
    fields = {
        "max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed, "stop": stop,
        "logprobs": logprobs, "min_tokens": min_tokens, "json_schema": json_schema,
    }  # fmt: skip
    slo = slo or Slo()
    return pb.GenerateRequest(
        model=model,
        messages=turns(messages),
        module=module,
        recall=recall_message(
            namespaces, recall_limit, recall_timeout_ms, recall_options or {}, choose_module, skip_pinned
        ),
        sampling=_sampling(sampling, {name: value for name, value in fields.items() if value is not None}),
        slo=pb.Slo(
            ttft_ms=slo.ttft_ms or 0,
            tpot_ms=slo.tpot_ms or 0,
            refuse_late=slo.refuse_late,
            skip_recall=slo.skip_recall,
        ),
        worker_id=worker_id,
        experts=[] if expert is None else [pb.Expert(reference=expert.reference, alpha=expert.alpha)],
        session=session,
        modules=_module_uses(modules),
        priority=_priority(priority),
        do_not_queue=do_not_queue,
        keep_prompt=keep_prompt,
    )


def _priority(priority: Priority | str | None) -> pb.Priority:
    """Raises UsageError."""
    if priority is None:
        return pb.PRIORITY_UNSPECIFIED
    if priority not in Priority.of_callers():
        raise UsageError("priority", f"must be one of {', '.join(Priority.of_callers())}, not {priority!r}")
    return PRIORITIES[Priority(priority)]


def _sampling(sampling: Sampling | None, fields: dict[str, Any]) -> pb.Sampling:
    """A sampling from the whole value or from single fields. Raises UsageError when both are given."""
    if sampling is None:
        sampling = Sampling(**({"max_tokens": 0} | fields))
    elif fields:
        raise UsageError(next(iter(fields)), "is given beside `sampling`, which has it too; give one of them")
    return pb.Sampling(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=sampling.seed,
        stop=strings("stop", sampling.stop),
        logprobs=sampling.logprobs,
        min_tokens=sampling.min_tokens,
        json_schema=sampling.json_schema,
    )


def event_of(response: pb.GenerateResponse) -> Event | None:
    """The event of a message. None: only a newer gateway has such an event."""
    match response.WhichOneof("event"):
        case "route":
            return _route_of(response.route)
        case "text":
            text = response.text
            return TextDelta(text.text, tuple(text.token_ids), tuple(text.logprobs))
        case "usage":
            return _usage_of(response.usage)
    return None


def _route_of(route: pb.Route) -> Route:
    return Route(
        request_id=route.request_id,
        model=route.model,
        worker_id=route.worker_id,
        reason=route.reason,
        predicted_ttft_ms=route.predicted_ttft_ms,
        prompt_tokens=route.prompt_tokens,
        expected_cached_tokens=route.expected_cached_tokens,
        modules=tuple(_used_module_of(used) for used in route.modules),
        recall_outcome=member(OUTCOMES, route.recall_outcome, RecallOutcome.UNKNOWN),
        passages=tuple(scored_of(hit) for hit in route.passages),
        lost_memories=route.lost_memories,
        candidates=tuple(_candidate_of(each) for each in route.candidates),
        excluded=tuple(ExcludedWorker(each.worker_id, each.reason) for each in route.excluded),
        predicted_within_ms=route.predicted_within_ms,
        system_folded=route.system_folded,
        merged_turns=route.merged_turns,
        skipped=skipped_of(route.skipped),
        recall=parts_of(route.recall),
        module_fits=fits_of(route.module_fits),
        outdated=tuple(_outdated_of(fact) for fact in route.outdated),
    )


def _outdated_of(fact: pb.OutdatedFact) -> OutdatedFact:
    return OutdatedFact(
        fact.module,
        fact.namespace,
        fact.memory_id,
        fact.known_version,
        fact.text_namespace,
        fact.text_memory_id,
        fact.text_version,
        fact.why,
    )


def explanation_of(response: pb.ExplainResponse) -> Explanation:
    usage = _usage_of(response.usage) if response.HasField("usage") else None
    return Explanation(_route_of(response.route), response.outcome, usage)


def _candidate_of(candidate: pb.RouteCandidate) -> RouteCandidate:
    return RouteCandidate(**{name: getattr(candidate, name) for name in candidate.DESCRIPTOR.fields_by_name})


def _module_uses(modules: str | ModuleUse | Sequence[str | ModuleUse]) -> list[pb.ModuleUse]:
    """Raises UsageError."""
    listed = [modules] if isinstance(modules, str | ModuleUse) else list(modules)
    uses = []
    for number, entry in enumerate(listed):
        if not isinstance(entry, str | ModuleUse):
            raise UsageError(f"modules[{number}]", "must be a reference or a ModuleUse")
        use = ModuleUse(entry) if isinstance(entry, str) else entry
        uses.append(pb.ModuleUse(reference=use.reference, strength=use.strength))
    return uses


def _used_module_of(used: pb.UsedModule) -> UsedModule:
    return UsedModule(used.name, used.version, used.digest, kind_of(used.kind), used.reason, used.alpha)


def _usage_of(usage: pb.Usage) -> Usage:
    return Usage(
        prompt_tokens=usage.prompt_tokens,
        output_tokens=usage.output_tokens,
        cached=cached_of(usage.cached_tokens),
        ttft_ms=usage.ttft_ms,
        tpot_ms=usage.tpot_ms if usage.HasField("tpot_ms") else None,
        slo_met=usage.slo_met,
        finish_reason=FINISH_REASONS.get(usage.finish_reason, FinishReason.UNKNOWN),
        stored_tokens=usage.stored_tokens,
        rungs=tuple(RungCost(rung.kind, rung.name, rung.tokens, rung.bytes, rung.ms) for rung in usage.rungs),
    )


def cached_of(cached: pb.CachedTokens) -> CachedTokens:
    return CachedTokens(cached.device, cached.host, cached.redis, cached.cartridge)


def kind_of(name: str) -> ModuleKind:
    """Receipts name the kind in words, unlike the messages of ModuleService."""
    return ModuleKind(name) if name in KINDS else ModuleKind.UNKNOWN
