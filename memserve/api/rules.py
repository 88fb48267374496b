"""What a request for an answer may say, whichever port it came by.

Fields are named as gRPC's GenerateRequest has them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from memserve.domain import GenerationRequest, Message, ModuleUse, Priority, Role, Sampling, Slo, Tenant
from memserve.errors import InvalidField, PriorityDenied
from memserve.memory.texts.rules import check_namespace
from memserve.policy.modules.references import parse_reference
from memserve.policy.sampling import check_min_tokens
from memserve.policy.schemas import check_schema

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
WORKER_ID_MAX = 64


def check_generation(request: GenerationRequest) -> None:
    """Raises InvalidField."""
    check_messages("messages", request.messages)
    if request.messages[-1].role not in (Role.USER, Role.TOOL):
        raise InvalidField(
            f"messages[{len(request.messages) - 1}].role", "the last message must be the user's or a tool's"
        )
    check_modules(request.modules)
    if len(request.session.encode()) > SESSION_MAX_BYTES:
        raise InvalidField("session", f"at most {SESSION_MAX_BYTES} bytes")
    if len(request.worker_id) > WORKER_ID_MAX:
        raise InvalidField("worker_id", f"at most {WORKER_ID_MAX} characters")
    if len(request.namespaces) > NAMESPACES_MAX:
        raise InvalidField("recall.namespaces", f"at most {NAMESPACES_MAX}")
    for namespace in request.namespaces:
        check_namespace("recall.namespaces", namespace)
    if not 0 <= request.recall_limit <= RECALL_MAX:
        raise InvalidField("recall.limit", f"from 1 to {RECALL_MAX}, or 0 for the default")
    if not 0 <= request.recall_timeout_s * 1000 <= RECALL_TIMEOUT_MAX_MS:
        raise InvalidField("recall.timeout_ms", f"from 1 to {RECALL_TIMEOUT_MAX_MS}, or 0 for the default")
    _check_sampling(request.sampling)
    _check_slo(request.slo)


def check_messages(field: str, messages: Sequence[Message]) -> None:
    """field: as the request names the messages. Raises InvalidField."""
    if not messages:
        raise InvalidField(field, "at least one is needed")
    if len(messages) > MESSAGES_MAX:
        raise InvalidField(field, f"at most {MESSAGES_MAX}")
    for number, message in enumerate(messages):
        if not message.content.strip() and not message.tool_calls:
            raise InvalidField(f"{field}[{number}].content", "must not be empty")


def check_modules(uses: Sequence[ModuleUse]) -> None:
    """Raises InvalidField."""
    if len(uses) > MODULES_MAX:
        raise InvalidField("modules", f"at most {MODULES_MAX}, with `module` and `experts`")
    for use in uses:
        parse_reference(use.field, use.reference)


def check_strength(field: str, strength: float) -> None:
    """Raises InvalidField."""
    if not -STRENGTH_MAX <= strength <= STRENGTH_MAX:  # NaN fails too
        raise InvalidField(field, f"from {-STRENGTH_MAX:g} to {STRENGTH_MAX:g}; 0 is off")


def usual_priority(highest: Priority) -> Priority:
    """Of a request that asks for none: normal, or the highest of the caller where that is less."""
    return max(Priority.NORMAL, highest, key=lambda each: each.band)


def check_priority(priority: Priority, tenant: Tenant) -> None:
    """Raises PriorityDenied."""
    if priority.band < tenant.highest.band:
        raise PriorityDenied(priority, tenant.highest)


def _check_sampling(sampling: Sampling) -> None:
    if not 0 <= sampling.max_tokens <= MAX_TOKENS_MAX:
        raise InvalidField("sampling.max_tokens", f"from 1 to {MAX_TOKENS_MAX}, or 0 for the default")
    if not 0 <= sampling.min_tokens <= MAX_TOKENS_MAX:
        raise InvalidField("sampling.min_tokens", f"from 1 to {MAX_TOKENS_MAX}, or 0 for none")
    if sampling.max_tokens:
        check_min_tokens(sampling.min_tokens, sampling.max_tokens)
    if not 0 <= sampling.temperature <= TEMPERATURE_MAX:  # NaN fails too
        raise InvalidField("sampling.temperature", f"from 0, which is greedy, to {TEMPERATURE_MAX:g}")
    if not 0 < sampling.top_p <= 1:
        raise InvalidField("sampling.top_p", "above 0 and at most 1, or 0 for the default, 1")
    if len(sampling.stop) > STOP_MAX or any(
        not 0 < len(stop.encode()) <= STOP_MAX_BYTES for stop in sampling.stop
    ):
        raise InvalidField("sampling.stop", f"at most {STOP_MAX} strings of 1 to {STOP_MAX_BYTES} bytes")
    if sampling.seed is not None and not 0 <= sampling.seed < 1 << 63:
        raise InvalidField("sampling.seed", "from 0 to 2^63 - 1")
    if sampling.json_schema and sampling.min_tokens:
        raise InvalidField("sampling.min_tokens", "cannot be asked for with json_schema, which says the end")
    if sampling.json_schema:
        check_schema("sampling.json_schema", sampling.json_schema)


def _check_slo(slo: Slo) -> None:
    for field, wish_ms in (("slo.ttft_ms", slo.ttft_ms), ("slo.tpot_ms", slo.tpot_ms)):
        if wish_ms is not None and (math.isnan(wish_ms) or not 0 < wish_ms <= SLO_MAX_MS):
            raise InvalidField(field, f"above 0 and at most {SLO_MAX_MS} ms, or 0 for no wish")
    if slo.refuse_late and slo.ttft_ms is None:
        raise InvalidField("slo.refuse_late", "needs slo.ttft_ms, the time that the first token may take")
