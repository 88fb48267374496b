"""Converts between the messages of `InferenceService` and domain values. Requests are checked here."""

from __future__ import annotations

import math
from collections.abc import Sequence

from memserve.api.grpc.convert.memory import scored_memory
from memserve.domain import (
    Explanation,
    FinishReason,
    GenerationRequest,
    Message,
    ModuleKind,
    ModuleUse,
    Priority,
    RecallOutcome,
    Role,
    Route,
    RouteCandidate,
    Sampling,
    Slo,
    TextDelta,
    Usage,
)
from memserve.errors import InvalidField
from memserve.memory.texts.rules import check_namespace
from memserve.pb.v1 import inference_pb2
from memserve.policy.modules.references import parse_reference
from memserve.policy.sampling import check_min_tokens

MESSAGES_MAX = 1000
STOP_MAX = 8
STOP_MAX_BYTES = 64
NAMESPACES_MAX = 16
RECALL_MAX = 64
RECALL_TIMEOUT_MAX_MS = 60_000
SLO_MAX_MS = 3_600_000
TEMPERATURE_MAX = 2.0
MAX_TOKENS_MAX = 1 << 20
MODULES_MAX = 8
STRENGTH_MAX = 10.0
SESSION_MAX_BYTES = 256
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
RECALL = {
    outcome: getattr(inference_pb2, f"RECALL_OUTCOME_{outcome.name}") for outcome in RecallOutcome.known()
}


def generation_request(
    request: inference_pb2.GenerateRequest, highest: Priority = Priority.HIGH
) -> GenerationRequest:
    """The request as a domain value, with `module` and `experts` among its modules.

    highest: the highest priority that the caller may ask for. Raises InvalidField.
    """
    messages = conversation("messages", request.messages)
    if messages[-1].role is not Role.USER:
        raise InvalidField(f"messages[{len(messages) - 1}].role", "the last message must be the user's")
    modules = _modules(request)
    if len(request.session.encode()) > SESSION_MAX_BYTES:
        raise InvalidField("session", f"at most {SESSION_MAX_BYTES} bytes")
    if len(request.worker_id) > 64:
        raise InvalidField("worker_id", "at most 64 characters")
    if len(request.recall.namespaces) > NAMESPACES_MAX:
        raise InvalidField("recall.namespaces", f"at most {NAMESPACES_MAX}")
    for namespace in request.recall.namespaces:
        check_namespace("recall.namespaces", namespace)
    if not 0 <= request.recall.limit <= RECALL_MAX:
        raise InvalidField("recall.limit", f"from 1 to {RECALL_MAX}, or 0 for the default")
    if not 0 <= request.recall.timeout_ms <= RECALL_TIMEOUT_MAX_MS:
        raise InvalidField("recall.timeout_ms", f"from 1 to {RECALL_TIMEOUT_MAX_MS}, or 0 for the default")
    return GenerationRequest(
        messages=messages,
        sampling=_sampling(request.sampling),
        model=request.model,
        modules=modules,
        namespaces=tuple(dict.fromkeys(request.recall.namespaces)),
        recall_limit=request.recall.limit,
        recall_timeout_s=request.recall.timeout_ms / 1000,
        slo=_slo(request.slo),
        worker_id=request.worker_id,
        session=request.session,
        priority=_priority(request.priority, highest),
        do_not_queue=request.do_not_queue,
    )


def conversation(field: str, messages: Sequence[inference_pb2.Message]) -> tuple[Message, ...]:
    """field: as the request names the messages. Raises InvalidField."""
    if not messages:
        raise InvalidField(field, "at least one is needed")
    if len(messages) > MESSAGES_MAX:
        raise InvalidField(field, f"at most {MESSAGES_MAX}")
    return tuple(_message(f"{field}[{number}]", message) for number, message in enumerate(messages))


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


def _usage(event: Usage) -> inference_pb2.Usage:
    return inference_pb2.Usage(
        prompt_tokens=event.prompt_tokens,
        output_tokens=event.output_tokens,
        cached_tokens=inference_pb2.CachedTokens(
            device=event.cached.device, host=event.cached.host, redis=event.cached.redis
        ),
        ttft_ms=event.ttft_ms,
        tpot_ms=event.tpot_ms,
        slo_met=event.slo_met,
        finish_reason=FINISH[event.finish_reason],
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
        recall_outcome=RECALL[event.recall_outcome],
        passages=[scored_memory(hit) for hit in event.passages],
        lost_memories=event.lost_memories,
        candidates=[_candidate(each) for each in event.candidates],
        excluded=[
            inference_pb2.ExcludedWorker(worker_id=each.worker_id, reason=each.reason)
            for each in event.excluded
        ],
        predicted_within_ms=event.predicted_within_ms,
    )


def _candidate(candidate: RouteCandidate) -> inference_pb2.RouteCandidate:
    return inference_pb2.RouteCandidate(**{name: getattr(candidate, name) for name in CANDIDATE_FIELDS})


def _message(field: str, message: inference_pb2.Message) -> Message:
    role = ROLES.get(message.role)
    if role is None:
        raise InvalidField(f"{field}.role", "must be system, user or assistant")
    if not message.content.strip():
        raise InvalidField(f"{field}.content", "must not be empty")
    return Message(role, message.content)


def _modules(request: inference_pb2.GenerateRequest) -> tuple[ModuleUse, ...]:
    uses = []
    if request.module:
        uses.append(ModuleUse(request.module, kind=ModuleKind.LORA, field="module"))
    if len(request.experts) > 1:
        raise InvalidField("experts", "at most one")
    for number, expert in enumerate(request.experts):
        alpha = expert.alpha if expert.HasField("alpha") else 1.0
        _check_strength(f"experts[{number}].alpha", alpha)
        field = f"experts[{number}].reference"
        uses.append(ModuleUse(expert.reference, alpha, ModuleKind.LOGIT_EXPERT, field))
    for number, module in enumerate(request.modules):
        strength = module.strength if module.HasField("strength") else 1.0
        _check_strength(f"modules[{number}].strength", strength)
        uses.append(ModuleUse(module.reference, strength, field=f"modules[{number}].reference"))
    if len(uses) > MODULES_MAX:
        raise InvalidField("modules", f"at most {MODULES_MAX}, with `module` and `experts`")
    for use in uses:
        parse_reference(use.field, use.reference)
    return tuple(uses)


def _check_strength(field: str, strength: float) -> None:
    if not -STRENGTH_MAX <= strength <= STRENGTH_MAX:  # NaN fails too
        raise InvalidField(field, f"from {-STRENGTH_MAX:g} to {STRENGTH_MAX:g}; 0 is off")


def _priority(asked: inference_pb2.Priority, highest: Priority) -> Priority:
    """Unspecified: normal, or the highest of the caller where that is less."""
    if asked == inference_pb2.PRIORITY_UNSPECIFIED:
        return max(Priority.NORMAL, highest, key=lambda each: each.band)
    if asked not in PRIORITIES:
        raise InvalidField("priority", f"must be {', '.join(Priority.of_callers())}, or unspecified")
    return PRIORITIES[asked]


def _slo(slo: inference_pb2.Slo) -> Slo:
    ttft_ms, tpot_ms = _wish("slo.ttft_ms", slo.ttft_ms), _wish("slo.tpot_ms", slo.tpot_ms)
    if slo.refuse_late and ttft_ms is None:
        raise InvalidField("slo.refuse_late", "needs slo.ttft_ms, the time that the first token may take")
    return Slo(ttft_ms, tpot_ms, slo.refuse_late, slo.skip_recall)


def _sampling(sampling: inference_pb2.Sampling) -> Sampling:
    if not 0 <= sampling.max_tokens <= MAX_TOKENS_MAX:
        raise InvalidField("sampling.max_tokens", f"from 1 to {MAX_TOKENS_MAX}, or 0 for the default")
    if not 0 <= sampling.min_tokens <= MAX_TOKENS_MAX:
        raise InvalidField("sampling.min_tokens", f"from 1 to {MAX_TOKENS_MAX}, or 0 for none")
    if sampling.max_tokens:
        check_min_tokens(sampling.min_tokens, sampling.max_tokens)
    if not 0 <= sampling.temperature <= TEMPERATURE_MAX:  # NaN fails too
        raise InvalidField("sampling.temperature", f"from 0, which is greedy, to {TEMPERATURE_MAX:g}")
    if not 0 <= sampling.top_p <= 1:
        raise InvalidField("sampling.top_p", "above 0 and at most 1, or 0 for the default, 1")
    if len(sampling.stop) > STOP_MAX or any(
        not 0 < len(stop.encode()) <= STOP_MAX_BYTES for stop in sampling.stop
    ):
        raise InvalidField("sampling.stop", f"at most {STOP_MAX} strings of 1 to {STOP_MAX_BYTES} bytes")
    if sampling.HasField("seed") and sampling.seed < 0:
        raise InvalidField("sampling.seed", "from 0 to 2^63 - 1")
    return Sampling(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p or 1.0,
        seed=sampling.seed if sampling.HasField("seed") else None,
        stop=tuple(sampling.stop),
        logprobs=sampling.logprobs,
        min_tokens=sampling.min_tokens,
    )


def _wish(field: str, value_ms: float) -> float | None:
    if math.isnan(value_ms) or not 0 <= value_ms <= SLO_MAX_MS:
        raise InvalidField(field, f"above 0 and at most {SLO_MAX_MS} ms, or 0 for no wish")
    return value_ms or None
