"""Why a call is refused, or an answer fails."""

from __future__ import annotations

from memserve.errors.base import MemserveError


class Unauthenticated(MemserveError):
    """The call has no valid API key, and no token."""

    def __init__(self) -> None:
        super().__init__("send a valid key in the metadata: authorization: Bearer <key>")


class TokenRefused(Unauthenticated):
    """The call has a JSON Web Token, and the token breaks a rule."""

    def __init__(self, why: str, rule: str) -> None:
        """why: a value of `TokenFault`."""
        MemserveError.__init__(self, f"this token is refused: {rule}")
        self.why = why


class TokenKeysUnavailable(MemserveError):
    """The call has a JSON Web Token, and the identity provider's keys could not be read for too long."""

    reason = "no_token_keys"

    def __init__(self, retry_after_s: float = 10.0) -> None:
        super().__init__(
            "the keys that tokens are checked with cannot be read from the identity provider; API keys are "
            f"taken all the same; try again in {retry_after_s:g} s"
        )
        self.retry_after_s = retry_after_s


class PermissionDenied(MemserveError):
    """The key or token is valid, and its role does not allow the call."""

    def __init__(self, what: str, needed: str, role: str) -> None:
        super().__init__(f"{what} needs a key or token with the role {needed}; this one has the role {role}")


class PriorityDenied(PermissionDenied):
    """The key or token may not ask for this priority."""

    def __init__(self, asked: str, highest: str) -> None:
        MemserveError.__init__(
            self, f"this caller's requests have the priority {highest} at most; {asked} was asked for"
        )


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


class OutcomeWithoutAnswer(MemserveError):
    """An outcome of a request whose answer is not kept."""

    def __init__(self, request_id: str) -> None:
        super().__init__(
            f"what request {request_id!r} was answered with is not kept (any more), so no memory can be "
            "credited; see the setting answers_kept_s"
        )


class QuotaExceeded(MemserveError):
    """A limit on concurrent work is reached."""

    reason = "quota"

    def __init__(self, what: str, limit: float, retry_after_s: float) -> None:
        super().__init__(f"{what}: the limit of {limit:.16g} is reached; try again in {retry_after_s:.3g} s")
        self.retry_after_s = retry_after_s


class NoWorker(MemserveError):
    """No worker can take the request now."""

    reason = "no_worker"

    def __init__(self, detail: str, retry_after_s: float = 2.0) -> None:
        super().__init__(f"no worker can serve this now ({detail}); try again in {retry_after_s:g} s")
        self.retry_after_s = retry_after_s


class Overloaded(MemserveError):
    """The engines have too much to do for this request."""

    def __init__(self, reason: str, detail: str, retry_after_s: float) -> None:
        """reason: a value of `RefusalReason`."""
        super().__init__(f"{detail}; try again in {retry_after_s:.3g} s")
        self.reason = reason
        self.detail = detail
        self.retry_after_s = retry_after_s


class GatewayStarting(MemserveError):
    """The gateway's port is open, and the gateway is not ready yet."""

    reason = "starting"

    def __init__(self, retry_after_s: float = 2.0) -> None:
        super().__init__(f"the gateway is starting; try again in {retry_after_s:g} s")
        self.retry_after_s = retry_after_s


class GatewayLeaving(MemserveError):
    """The gateway stops. It finishes what it has begun, and begins nothing more."""

    reason = "leaving"

    def __init__(self, retry_after_s: float = 0.1) -> None:
        super().__init__("this gateway stops and takes no more calls; send the call again, to another one")
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
