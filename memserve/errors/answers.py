"""Why a call is refused, or an answer fails."""

from __future__ import annotations

from memserve.errors.base import MemserveError


class Unauthenticated(MemserveError):
    """The call has no valid API key."""

    def __init__(self) -> None:
        super().__init__("send a valid key in the metadata: authorization: Bearer <key>")


class PermissionDenied(MemserveError):
    """The key is valid, and its role does not allow the call."""

    def __init__(self, what: str, needed: str, role: str) -> None:
        super().__init__(f"{what} needs a key with the role {needed}; this key has the role {role}")


class ModelNotFound(MemserveError):
    """The request names a model that is not served here."""

    def __init__(self, name: str, served: str) -> None:
        super().__init__(
            f"model {name!r} is not served here; the served model is {served!r} (an empty name means it)"
        )


class RequestNotKnown(MemserveError):
    """The gateway does not know a request of the tenant by this id."""

    def __init__(self, request_id: str, kept: int) -> None:
        super().__init__(
            f"request {request_id!r} is not known here; a gateway knows its own last {kept} requests, by the "
            "request_id of their receipts"
        )


class QuotaExceeded(MemserveError):
    """A limit on concurrent work is reached."""

    def __init__(self, what: str, limit: float, retry_after_s: float) -> None:
        super().__init__(f"{what}: the limit of {limit:.16g} is reached; try again in {retry_after_s:.3g} s")
        self.retry_after_s = retry_after_s


class NoWorker(MemserveError):
    """No worker can take the request now."""

    def __init__(self, detail: str, retry_after_s: float = 2.0) -> None:
        super().__init__(f"no worker can serve this now ({detail}); try again in {retry_after_s:g} s")
        self.retry_after_s = retry_after_s


class PredictedLate(MemserveError):
    """No worker is predicted to meet the time to first token, and the request would rather be refused."""

    def __init__(self, predicted_ms: float, wish_ms: float, retry_after_s: float) -> None:
        super().__init__(
            f"the first token is predicted after {predicted_ms:.0f} ms, and wished for within {wish_ms:g}; "
            f"try again in {retry_after_s:.2g} s"
        )
        self.retry_after_s = retry_after_s


class GatewayStarting(MemserveError):
    """The gateway's port is open, and the gateway is not ready yet."""

    def __init__(self, retry_after_s: float = 2.0) -> None:
        super().__init__(f"the gateway is starting; try again in {retry_after_s:g} s")
        self.retry_after_s = retry_after_s


class WorkerLost(MemserveError):
    """The worker died after the answer had begun."""

    def __init__(self, worker_id: str) -> None:
        super().__init__(f"worker {worker_id} was lost while it streamed the answer; send the request again")
        self.worker_id = worker_id


class WorkersLost(MemserveError):
    """Several workers were lost before their first token of one answer. The request may be what ends them."""

    def __init__(self, workers: int, detail: str) -> None:
        super().__init__(
            f"{workers} workers were lost under this request, which is not tried on a third ({detail}); do "
            "not repeat it as it is"
        )


class DeadlineExceeded(MemserveError):
    """The caller's deadline passed before the answer was complete."""

    def __init__(self) -> None:
        super().__init__(
            "the deadline passed before the answer was complete; allow more time or ask for fewer tokens"
        )
