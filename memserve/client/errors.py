"""How a call fails: one exception for every gRPC status."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import grpc

from memserve.domain import RefusalReason
from memserve.domain.worker_calls import REASON, RETRY_AFTER
from memserve.errors import PicklableError, UsageError

FIELD_KEY = "memserve-field"


class CallFailed(PicklableError):
    """A call ended with a gRPC status."""

    code: grpc.StatusCode
    detail: str
    """What the gateway says, for a person."""
    field: str | None
    """The field of the request that is at fault, where the gateway says so."""
    retry_after_s: float | None
    """How long to wait before the next try, where the gateway says so."""
    reason: RefusalReason | None
    """Why the call is refused now and may be sent again later, where that is so."""

    def __init__(
        self,
        code: grpc.StatusCode,
        detail: str,
        field: str | None,
        retry_after_s: float | None,
        reason: RefusalReason | None = None,
    ) -> None:
        super().__init__(f"{code.name}: {detail}")
        self.code = code
        self.detail = detail
        self.field = field
        self.retry_after_s = retry_after_s
        self.reason = reason


@contextlib.contextmanager
def call_failures() -> Iterator[None]:
    """Raises CallFailed for gRPC's own exception."""
    try:
        yield
    except grpc.RpcError as error:
        raise call_failed(error) from None


def call_failed(error: Any) -> CallFailed:
    """error: a grpc.RpcError of a call, which has code(), details() and trailing_metadata()."""
    trailing = {key: str(value) for key, value in (error.trailing_metadata() or ())}
    retry, reason = trailing.get(RETRY_AFTER), trailing.get(REASON)
    known = reason if reason in tuple(RefusalReason) else RefusalReason.UNKNOWN
    return CallFailed(
        error.code(),
        error.details() or "",
        trailing.get(FIELD_KEY),
        float(retry) if retry else None,
        RefusalReason(known) if reason else None,
    )


def client_closed() -> UsageError:
    return UsageError("client", "it is closed; make a new one")
