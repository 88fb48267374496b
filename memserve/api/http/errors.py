"""The table from facts to HTTP statuses, and OpenAI's shape of an error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from pydantic import ValidationError

from memserve import errors
from memserve.api.facts import WITH_RETRY, detail_of, utf8
from memserve.api.http.bodies import NAMED
from memserve.errors import InvalidField

STATUS: dict[type[errors.MemserveError], HTTPStatus] = {
    errors.InvalidField: HTTPStatus.BAD_REQUEST,
    errors.InvalidModule: HTTPStatus.BAD_REQUEST,
    errors.Unauthenticated: HTTPStatus.UNAUTHORIZED,
    errors.TokenRefused: HTTPStatus.UNAUTHORIZED,
    errors.TokenKeysUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.PermissionDenied: HTTPStatus.FORBIDDEN,
    errors.PriorityDenied: HTTPStatus.FORBIDDEN,
    errors.ModelNotFound: HTTPStatus.NOT_FOUND,
    errors.ModuleNotFound: HTTPStatus.NOT_FOUND,
    errors.ModuleNotLive: HTTPStatus.CONFLICT,
    errors.AliasConflict: HTTPStatus.CONFLICT,
    errors.OtherBase: HTTPStatus.CONFLICT,
    errors.DistillationFailed: HTTPStatus.CONFLICT,
    errors.NothingToRollBack: HTTPStatus.CONFLICT,
    errors.VersionInUse: HTTPStatus.CONFLICT,
    errors.GateRefused: HTTPStatus.CONFLICT,
    errors.UploadIncomplete: HTTPStatus.BAD_REQUEST,
    errors.BlobDamaged: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.BlobStoreUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.RequestNotKnown: HTTPStatus.NOT_FOUND,
    errors.OutcomeWithoutAnswer: HTTPStatus.CONFLICT,
    errors.NamespaceNotFound: HTTPStatus.NOT_FOUND,
    errors.ErasureNotFound: HTTPStatus.NOT_FOUND,
    errors.MemoryNotFound: HTTPStatus.NOT_FOUND,
    errors.MemoryConflict: HTTPStatus.CONFLICT,
    errors.VersionConflict: HTTPStatus.CONFLICT,
    errors.VersionNotFound: HTTPStatus.NOT_FOUND,
    errors.MatchesChanged: HTTPStatus.CONFLICT,
    errors.ChangesMissed: HTTPStatus.GONE,
    errors.QuotaExceeded: HTTPStatus.TOO_MANY_REQUESTS,
    errors.DiskFull: HTTPStatus.INSUFFICIENT_STORAGE,
    errors.RegistryDiskFull: HTTPStatus.INSUFFICIENT_STORAGE,
    errors.JournalFull: HTTPStatus.TOO_MANY_REQUESTS,
    errors.QuotaReached: HTTPStatus.TOO_MANY_REQUESTS,
    errors.PinnedMemoriesFull: HTTPStatus.TOO_MANY_REQUESTS,
    errors.AuditFull: HTTPStatus.INSUFFICIENT_STORAGE,
    errors.PrefixNotStored: HTTPStatus.CONFLICT,
    errors.PinLimitReached: HTTPStatus.TOO_MANY_REQUESTS,
    errors.NoWorker: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.WorkersLost: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.Overloaded: HTTPStatus.TOO_MANY_REQUESTS,
    errors.GatewayLeaving: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.GatewayStarting: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.WorkerLost: HTTPStatus.BAD_GATEWAY,
    errors.DeadlineExceeded: HTTPStatus.GATEWAY_TIMEOUT,
    errors.RegistryUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.UnreadableRecord: HTTPStatus.CONFLICT,
    errors.CacheUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.BackupExists: HTTPStatus.CONFLICT,
    errors.BackupNotPossible: HTTPStatus.CONFLICT,
    errors.BackupDamaged: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.VectorStoreHeld: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.EmbedderUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.EmbedderChanged: HTTPStatus.CONFLICT,
    errors.VectorStoreDamaged: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.VectorStoreUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
}
TYPES = {
    HTTPStatus.BAD_REQUEST: "invalid_request_error",
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.METHOD_NOT_ALLOWED: "invalid_request_error",
    HTTPStatus.CONFLICT: "conflict_error",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "invalid_request_error",
    HTTPStatus.REQUEST_TIMEOUT: "timeout_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    HTTPStatus.GATEWAY_TIMEOUT: "timeout_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "service_unavailable_error",
}
CODES: dict[type[errors.MemserveError], str] = {
    errors.Unauthenticated: "invalid_api_key",
    errors.TokenRefused: "invalid_token",
    errors.ModelNotFound: "model_not_found",
    errors.ModuleNotFound: "model_not_found",
}
# What gRPC's requests call a field, and what it is called here. Longer names first.
NAMES = (
    ("sampling.json_schema", "response_format"),
    ("sampling.", ""),
    ("recall.namespaces", "memserve.namespaces"),
    ("recall.options.", "memserve.recall."),
    ("recall.choose_module", "memserve.recall.choose_module"),
    ("recall.limit", "memserve.recall_limit"),
    ("recall.timeout_ms", "memserve.recall_timeout_ms"),
    *((name, f"memserve.{name}") for name in ("slo.", "session", "modules", "worker_id", "priority")),
)
MISSING = "missing"


def error_body(
    status: HTTPStatus, message: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    kind = TYPES.get(status, "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def told(fact: errors.MemserveError | str) -> tuple[HTTPStatus, dict[str, Any], Mapping[str, str]]:
    """Status, body and headers of a fact, or of an incident by its id."""
    if isinstance(fact, str):
        message = f"internal error; the gateway's log has it as incident {fact}"
        status = HTTPStatus.INTERNAL_SERVER_ERROR
        return status, error_body(status, message), {}
    status = STATUS.get(type(fact), HTTPStatus.INTERNAL_SERVER_ERROR)
    param, code, headers = None, CODES.get(type(fact)), {}
    message = utf8(detail_of(fact))
    if isinstance(fact, errors.InvalidField | errors.InvalidModule):
        param = utf8(named(fact.field))
        message = message.replace(utf8(fact.field), param, 1)
    if isinstance(fact, errors.ModelNotFound | errors.ModuleNotFound):
        param = "model"
    if isinstance(fact, errors.Unauthenticated):
        headers["www-authenticate"] = "Bearer"
        if isinstance(fact, errors.TokenRefused):
            # Source: RFC 6750, section 3.1.
            headers["www-authenticate"] = 'Bearer error="invalid_token"'
        else:
            message = "send a valid key in the header: authorization: Bearer <key>"
    if isinstance(fact, WITH_RETRY):
        code = fact.reason
        headers["retry-after"] = str(max(math.ceil(fact.retry_after_s), 1))
        headers["retry-after-ms"] = str(math.ceil(fact.retry_after_s * 1000))
        headers["x-memserve-reason"] = fact.reason
    return status, error_body(status, message, param, code), headers


def named(field: str) -> str:
    """A field of a gRPC request, as the JSON has it."""
    for name, here in NAMES:
        rest = field.removeprefix(name)
        if field.startswith(name) and (name.endswith(".") or not rest[:1].isalnum()):
            return here + rest
    return field


def invalid(error: ValidationError) -> InvalidField:
    """The first thing that is wrong with a body."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = first["loc"]
    field = ""
    for number, step in enumerate(place):
        if isinstance(step, int):
            field += f"[{step}]"
        elif first["type"] == MISSING and number == len(place) - 1:
            field += f".{step}" if field else step
        elif step == "str" or "[" in step or (number and place[number - 1] == "response_format"):
            continue  # which member of a union it is
        else:
            field += f".{step}" if field else step
    if first["type"] == NAMED:
        name, rule = first["ctx"]["name"], first["ctx"]["rule"]
        return InvalidField(f"{field}.{name}" if field else name, rule)
    if first["type"] == MISSING:
        return InvalidField(field, "is required")
    return InvalidField(field or "body", first["msg"][:1].lower() + first["msg"][1:])
