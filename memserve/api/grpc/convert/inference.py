"""Converts between the messages of `InferenceService` and domain values. Requests are checked here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from memserve.api.grpc.convert.memory import search_options
from memserve.api.rules import check_generation, check_messages, check_strength, usual_priority
from memserve.client.wire.memory_values import memory_message, scored_message, skipped_messages
from memserve.client.wire.recalled import OUTCOMES, fit_messages, part_messages
from memserve.domain import (
    CachedTokens,
    Explanation,
    FinishReason,
    GenerationRequest,
    Message,
    ModuleKind,
    ModuleUse,
    Priority,
    RecallPreview,
    RecordedOutcome,
    Role,
    Route,
    RouteCandidate,
    Sampling,
    Slo,
    TextDelta,
    Usage,
)
from memserve.errors import InvalidField
from memserve.pb.v1 import inference_pb2

CANDIDATE_FIELDS = tuple(inference_pb2.RouteCandidate.DESCRIPTOR.fields_by_name)

ROLES = {
    inference_pb2.ROLE_SYSTEM: Role.SYSTEM,
    inference_pb2.ROLE_USER: Role.USER,
    inference_pb2.ROLE_ASSISTANT: Role.ASSISTANT,
}
PRIORITIES = {
    getattr(inference_pb2, f"PRIORITY_{priority.name}"): priority for priority in Priority.of_callers()
}
FINISH = {
    FinishReason.STOP: inference_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: inference_pb2.FINISH_REASON_LENGTH,
}


def generation_request(
    request: inference_pb2.GenerateRequest, highest: Priority = Priority.HIGH
) -> GenerationRequest:
    """The request as a domain value, with `module` and `experts` among its modules.

    highest: the highest priority that the caller may ask for. Raises InvalidField.
    """
    recall = request.recall
    asked = GenerationRequest(
        messages=conversation("messages", request.messages),
        sampling=_sampling(request.sampling),
        model=request.model,
        modules=_modules(request),
        namespaces=tuple(dict.fromkeys(recall.namespaces)),
        recall_limit=recall.limit,
        recall_timeout_s=recall.timeout_ms / 1000,
        search=search_options("recall.options", recall.options) if recall.HasField("options") else None,
        choose_module=recall.choose_module,
        skip_pinned=recall.skip_pinned,
        slo=Slo(
            request.slo.ttft_ms or None,
            request.slo.tpot_ms or None,
            request.slo.refuse_late,
            request.slo.skip_recall,
        ),
        worker_id=request.worker_id,
        session=request.session,
        priority=_priority(request.priority, highest),
        do_not_queue=request.do_not_queue,
        keep_prompt=request.keep_prompt,
    )
    check_generation(asked)
    return asked


def recall_request(request: inference_pb2.RecallRequest) -> GenerationRequest:
    """As the request for an answer. Raises InvalidField."""
    return generation_request(
        inference_pb2.GenerateRequest(
            model=request.model,
            messages=request.messages,
            module=request.module,
            modules=request.modules,
            recall=request.recall,
        )
    )


def recall_response(preview: RecallPreview) -> inference_pb2.RecallResponse:
    return inference_pb2.RecallResponse(
        outcome=OUTCOMES[preview.outcome],
        passages=map(scored_message, preview.passages),
        skipped=skipped_messages(preview.skipped),
        parts=part_messages(preview.parts),
        module_fits=fit_messages(preview.module_fits),
        prompt_tokens=preview.prompt_tokens,
        redis_tokens=preview.redis_tokens,
        held_tokens=preview.held_tokens,
    )


def recorded_response(recorded: RecordedOutcome) -> inference_pb2.RecordOutcomeResponse:
    reflection = recorded.reflection
    return inference_pb2.RecordOutcomeResponse(
        memories=[
            inference_pb2.Reinforced(
                namespace=each.namespace,
                memory_id=each.memory_id,
                strength_before=each.strength_before,
                strength=each.strength,
            )
            for each in recorded.memories
        ],
        reflection=None if reflection is None else memory_message(reflection),
    )


def conversation(field: str, messages: Sequence[inference_pb2.Message]) -> tuple[Message, ...]:
    """field: as the request names the messages. Raises InvalidField."""
    found = tuple(_message(f"{field}[{number}]", message) for number, message in enumerate(messages))
    check_messages(field, found)
    return found


def generate_response(event: Route | TextDelta | Usage) -> inference_pb2.GenerateResponse:
    if isinstance(event, TextDelta):
        text = inference_pb2.TextDelta(text=event.text, token_ids=event.token_ids, logprobs=event.logprobs)
        return inference_pb2.GenerateResponse(text=text)
    if isinstance(event, Usage):
        return inference_pb2.GenerateResponse(usage=_usage(event))
    return inference_pb2.GenerateResponse(route=_route(event))


def explain_response(explanation: Explanation) -> inference_pb2.ExplainResponse:
    return inference_pb2.ExplainResponse(
        route=_route(explanation.route),
        outcome=explanation.outcome,
        usage=None if explanation.usage is None else _usage(explanation.usage),
    )


def cached_tokens(cached: CachedTokens) -> inference_pb2.CachedTokens:
    return inference_pb2.CachedTokens(
        device=cached.device, host=cached.host, redis=cached.redis, cartridge=cached.cartridge
    )


def _usage(event: Usage) -> inference_pb2.Usage:
    return inference_pb2.Usage(
        prompt_tokens=event.prompt_tokens,
        output_tokens=event.output_tokens,
        cached_tokens=cached_tokens(event.cached),
        ttft_ms=event.ttft_ms,
        tpot_ms=event.tpot_ms,
        slo_met=event.slo_met,
        finish_reason=FINISH[event.finish_reason],
        stored_tokens=event.stored_tokens,
        rungs=[inference_pb2.RungCost(**asdict(rung)) for rung in event.rungs],
    )


def _route(event: Route) -> inference_pb2.Route:
    return inference_pb2.Route(
        request_id=event.request_id,
        model=event.model,
        worker_id=event.worker_id,
        reason=event.reason,
        predicted_ttft_ms=event.predicted_ttft_ms,
        prompt_tokens=event.prompt_tokens,
        expected_cached_tokens=event.expected_cached_tokens,
        modules=[
            inference_pb2.UsedModule(
                name=used.name,
                version=used.version,
                digest=used.digest,
                kind=used.kind,
                reason=used.reason,
                alpha=used.alpha,
            )
            for used in event.modules
        ],
        recall_outcome=OUTCOMES[event.recall_outcome],
        passages=map(scored_message, event.passages),
        lost_memories=event.lost_memories,
        candidates=[_candidate(each) for each in event.candidates],
        excluded=[
            inference_pb2.ExcludedWorker(worker_id=each.worker_id, reason=each.reason)
            for each in event.excluded
        ],
        predicted_within_ms=event.predicted_within_ms,
        system_folded=event.system_folded,
        merged_turns=event.merged_turns,
        skipped=skipped_messages(event.skipped),
        recall=part_messages(event.recall),
        module_fits=fit_messages(event.module_fits),
        outdated=[inference_pb2.OutdatedFact(**asdict(fact)) for fact in event.outdated],
    )


def _candidate(candidate: RouteCandidate) -> inference_pb2.RouteCandidate:
    return inference_pb2.RouteCandidate(**{name: getattr(candidate, name) for name in CANDIDATE_FIELDS})


def _message(field: str, message: inference_pb2.Message) -> Message:
    role = ROLES.get(message.role)
    if role is None:
        raise InvalidField(f"{field}.role", "must be system, user or assistant")
    return Message(role, message.content)


def _modules(request: inference_pb2.GenerateRequest) -> tuple[ModuleUse, ...]:
    uses = []
    if request.module:
        uses.append(ModuleUse(request.module, kind=ModuleKind.LORA, field="module"))
    if len(request.experts) > 1:
        raise InvalidField("experts", "at most one")
    for number, expert in enumerate(request.experts):
        alpha = expert.alpha if expert.HasField("alpha") else 1.0
        check_strength(f"experts[{number}].alpha", alpha)
        field = f"experts[{number}].reference"
        uses.append(ModuleUse(expert.reference, alpha, ModuleKind.LOGIT_EXPERT, field))
    for number, module in enumerate(request.modules):
        strength = module.strength if module.HasField("strength") else 1.0
        check_strength(f"modules[{number}].strength", strength)
        uses.append(ModuleUse(module.reference, strength, field=f"modules[{number}].reference"))
    return tuple(uses)


def _priority(asked: inference_pb2.Priority, highest: Priority) -> Priority:
    if asked == inference_pb2.PRIORITY_UNSPECIFIED:
        return usual_priority(highest)
    if asked not in PRIORITIES:
        raise InvalidField("priority", f"must be {', '.join(Priority.of_callers())}, or unspecified")
    return PRIORITIES[asked]


def _sampling(sampling: inference_pb2.Sampling) -> Sampling:
    return Sampling(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p or 1.0,
        seed=sampling.seed if sampling.HasField("seed") else None,
        stop=tuple(sampling.stop),
        logprobs=sampling.logprobs,
        min_tokens=sampling.min_tokens,
        json_schema=sampling.json_schema,
    )
