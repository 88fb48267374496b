"""Between `memserve.v1` messages and domain values. What comes in is checked here: the field is named, and
the rule.
"""

from __future__ import annotations

import math
from typing import Any

from memserve.domain import (
    Expert,
    FinishReason,
    GenerationRequest,
    Memory,
    Message,
    RecallOutcome,
    Role,
    Route,
    Sampling,
    ScoredMemory,
    Slo,
    TextDelta,
    Usage,
)
from memserve.errors import InvalidField
from memserve.memory.texts.memory import check_namespace
from memserve.pb.v1 import activation_pb2, inference_pb2, memory_pb2
from memserve.policy.modules.traffic import parse_reference
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
ALPHA_MAX = 10.0
SESSION_MAX_BYTES = 256

ROLES = {
    inference_pb2.ROLE_SYSTEM: Role.SYSTEM,
    inference_pb2.ROLE_USER: Role.USER,
    inference_pb2.ROLE_ASSISTANT: Role.ASSISTANT,
}
FINISH = {
    FinishReason.STOP: inference_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: inference_pb2.FINISH_REASON_LENGTH,
}
RECALL = {
    outcome: getattr(inference_pb2, f"RECALL_OUTCOME_{outcome.name}") for outcome in RecallOutcome.known()
}


def generation_request(request: inference_pb2.GenerateRequest) -> GenerationRequest:
    """Raises InvalidField."""
    if not request.messages:
        raise InvalidField("messages", "at least one is needed")
    if len(request.messages) > MESSAGES_MAX:
        raise InvalidField("messages", f"at most {MESSAGES_MAX}")
    messages = tuple(
        _message(f"messages[{number}]", message) for number, message in enumerate(request.messages)
    )
    if messages[-1].role is not Role.USER:
        raise InvalidField(f"messages[{len(messages) - 1}].role", "the last message must be the user's")
    if request.module:
        parse_reference("module", request.module)
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
        module=request.module,
        namespaces=tuple(dict.fromkeys(request.recall.namespaces)),
        recall_limit=request.recall.limit,
        recall_timeout_s=request.recall.timeout_ms / 1000,
        slo=Slo(_wish("slo.ttft_ms", request.slo.ttft_ms), _wish("slo.tpot_ms", request.slo.tpot_ms)),
        worker_id=request.worker_id,
        expert=_expert(request),
        session=request.session,
    )


def prefix_messages(prefix: activation_pb2.Prefix) -> tuple[Message, ...]:
    """Raises InvalidField."""
    if not prefix.messages:
        raise InvalidField("prefix.messages", "at least one is needed")
    if len(prefix.messages) > MESSAGES_MAX:
        raise InvalidField("prefix.messages", f"at most {MESSAGES_MAX}")
    if prefix.module:
        parse_reference("prefix.module", prefix.module)
    return tuple(
        _message(f"prefix.messages[{number}]", message) for number, message in enumerate(prefix.messages)
    )


def generate_response(event: Route | TextDelta | Usage) -> inference_pb2.GenerateResponse:
    if isinstance(event, TextDelta):
        text = inference_pb2.TextDelta(text=event.text, token_ids=event.token_ids, logprobs=event.logprobs)
        return inference_pb2.GenerateResponse(text=text)
    if isinstance(event, Usage):
        usage = inference_pb2.Usage(
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
        return inference_pb2.GenerateResponse(usage=usage)
    route = inference_pb2.Route(
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
    )
    return inference_pb2.GenerateResponse(route=route)


def memory(value: Memory) -> memory_pb2.Memory:
    return memory_pb2.Memory(
        memory_id=value.memory_id,
        namespace=value.namespace,
        text=value.text,
        source=value.source,
        keywords=value.keywords,
        created_s=value.created_s,
    )


def scored_memory(hit: ScoredMemory) -> memory_pb2.ScoredMemory:
    return memory_pb2.ScoredMemory(
        memory=memory(hit.memory), score=hit.score, dense_score=hit.dense_score, bm25_score=hit.bm25_score
    )


def _message(field: str, message: Any) -> Message:
    role = ROLES.get(message.role)
    if role is None:
        raise InvalidField(f"{field}.role", "must be system, user or assistant")
    if not message.content.strip():
        raise InvalidField(f"{field}.content", "must not be empty")
    return Message(role, message.content)


def _expert(request: inference_pb2.GenerateRequest) -> Expert | None:
    if not request.experts:
        return None
    if len(request.experts) > 1:
        raise InvalidField("experts", "at most one")
    (expert,) = request.experts
    parse_reference("experts[0].reference", expert.reference)
    alpha = expert.alpha if expert.HasField("alpha") else 1.0
    if not -ALPHA_MAX <= alpha <= ALPHA_MAX:  # NaN fails too
        raise InvalidField("experts[0].alpha", f"from {-ALPHA_MAX:g} to {ALPHA_MAX:g}; 0 is off")
    return Expert(expert.reference, alpha)


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
