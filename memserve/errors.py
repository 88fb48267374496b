"""Errors that a caller can act on.

They know no gRPC: one table in `api/grpc/errors.py` maps each to a status.
"""

from __future__ import annotations

from typing import Any


class PicklableError(Exception):
    """An exception that crosses a process boundary, whatever its constructor takes.

    Process pools, Ray and Celery pickle what is raised.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[PicklableError], args: tuple[Any, ...], state: dict[str, Any]) -> PicklableError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class MemserveError(PicklableError):
    """An error that a caller can act on. `str(error)` is one line that says what to do."""


class FieldError(PicklableError):
    """A value breaks a rule."""

    def __init__(self, field: str, rule: str) -> None:
        super().__init__(f"{field}: {rule}")
        self.field = field
        self.rule = rule


class UsageError(FieldError, ValueError):
    """The client cannot send the request. Nothing has been sent."""


class InvalidField(FieldError, MemserveError):
    """A request's field breaks a rule."""


class InvalidModule(FieldError, MemserveError):
    """An uploaded module is not what its files say, or does not fit the served model."""


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


class ModuleNotFound(MemserveError):
    """The tenant has no module, version or alias of this name."""

    def __init__(self, reference: str) -> None:
        super().__init__(
            f"module {reference!r} does not exist; `memserve modules list` shows the ones that do"
        )


class ModuleNotLive(MemserveError):
    """The module has no version behind the alias of the request."""

    def __init__(self, name: str, alias: str) -> None:
        super().__init__(
            f"module {name!r} has no alias {alias!r} yet; `memserve modules promote {name} <version>` sets it"
        )


class AliasConflict(MemserveError):
    """An alias is not at the revision that the caller expects: another change came first."""

    def __init__(self, name: str, alias: str, revision: int, expected: int) -> None:
        super().__init__(
            f"{name}@{alias} is at revision {revision}, not {expected}; look at it again and decide anew"
        )


class OtherBase(MemserveError):
    """A version was made for another base model than the served one."""

    def __init__(self, reference: str, base_digest: str) -> None:
        super().__init__(
            f"{reference} was made for another base model ({base_digest[:12]}); publish one for the model "
            "that is served"
        )


class NothingToRollBack(MemserveError):
    """The alias never had another target, or the version that it had before is deleted."""

    def __init__(self, name: str, alias: str, why: str) -> None:
        super().__init__(f"{name}@{alias} cannot be rolled back: {why}")


class VersionInUse(MemserveError):
    """A version cannot be deleted while it is in use."""

    def __init__(self, reference: str, user: str) -> None:
        super().__init__(f"{reference} is in use by {user}; release it there first")


class GateRefused(MemserveError):
    """A version's probes are below the thresholds."""

    def __init__(self, reference: str, figures: str) -> None:
        super().__init__(
            f"the gate refuses {reference}: {figures}; promote with force to override, which is recorded"
        )


class UploadIncomplete(MemserveError):
    """An upload ended before all of its bytes had arrived. The bytes that arrived are kept for a while."""

    def __init__(self, file_name: str, received: int, size: int) -> None:
        super().__init__(
            f"{file_name} has {received} of {size} bytes; send the same upload again, it goes on from there"
        )


class BlobDamaged(MemserveError):
    """The files that the module store has under a digest differ from those that were put there."""

    def __init__(self, digest: str, why: str) -> None:
        super().__init__(
            f"the module store's files of {digest} are damaged ({why}); publish the same content again"
        )


class BlobStoreUnavailable(MemserveError):
    """The module store does not answer, or refuses memserve's credentials."""

    def __init__(self, detail: str) -> None:
        super().__init__(f"the module store does not answer ({detail}); try again")


class NamespaceNotFound(MemserveError):
    """The tenant has no memory namespace of this name."""

    def __init__(self, namespace: str) -> None:
        super().__init__(f"namespace {namespace!r} does not exist; the first Remember in it creates it")
        self.namespace = namespace


class MemoryNotFound(MemserveError):
    """The namespace has no memory with this id."""

    def __init__(self, memory_id: str) -> None:
        super().__init__(f"memory {memory_id!r} does not exist")
        self.memory_id = memory_id


class MemoryConflict(MemserveError):
    """The id already belongs to a memory with other content."""

    def __init__(self, memory_id: str) -> None:
        super().__init__(
            f"memory {memory_id!r} already exists with other content; forget it first or use another id"
        )
        self.memory_id = memory_id


class QuotaExceeded(MemserveError):
    """A limit on concurrent work is reached."""

    def __init__(self, what: str, limit: float, retry_after_s: float) -> None:
        super().__init__(f"{what}: the limit of {limit:.16g} is reached; try again in {retry_after_s:.3g} s")
        self.retry_after_s = retry_after_s


class DiskFull(MemserveError):
    """The disk that a change would be written to has too little room."""

    def __init__(self, disk: str, retry_after_s: float) -> None:
        super().__init__(
            f"{disk} is nearly full, so no changes are taken; make room there, and try again in "
            f"{retry_after_s:g} s"
        )
        self.retry_after_s = retry_after_s


class JournalFull(MemserveError):
    """Too many memories wait to become durable in the vector store. No more are taken."""

    def __init__(self, waiting_bytes: int, retry_after_s: float) -> None:
        super().__init__(
            f"{waiting_bytes >> 20} MiB of memories wait until the vector store has written them, and no "
            f"more are taken; none is lost; try again in {retry_after_s:g} s"
        )
        self.retry_after_s = retry_after_s


class QuotaReached(MemserveError):
    """A tenant has reached a limit on what it may keep."""

    retry_after_s = 60.0

    def __init__(self, what: str, limit: int, setting: str) -> None:
        super().__init__(
            f"{what}: the quota of {limit} is reached (setting {setting}); remove some, or have it raised"
        )


class AuditFull(MemserveError):
    """The record of a tenant's changes is full. Its events are removed only after export, or with age."""

    def __init__(self, tenant: str, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"the audit of tenant {tenant} has {size_bytes} of {limit_bytes} bytes; `memserve audit export "
            "FILE --release` makes room"
        )


class PrefixNotStored(MemserveError):
    """A prefix cannot be pinned because Redis does not have all of it."""

    def __init__(self, stored: int, chunks: int) -> None:
        rule = (
            f"{stored} of its {chunks} chunks are in Redis; warm it first"
            if chunks
            else "it is shorter than one chunk and never stored"
        )
        super().__init__(f"the prefix cannot be pinned: {rule}")


class PinLimitReached(MemserveError):
    """The tenant has pinned as much as it may, or all tenants together have."""

    def __init__(self, tenant: str, pinned_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"tenant {tenant} has pinned {pinned_bytes} of {limit_bytes} bytes, and this prefix does not "
            "fit, there or in what all tenants may pin; unpin another first"
        )


class NoWorker(MemserveError):
    """No worker can take the request now."""

    def __init__(self, detail: str, retry_after_s: float = 2.0) -> None:
        super().__init__(f"no worker can serve this now ({detail}); try again in {retry_after_s:g} s")
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


class RegistryUnavailable(MemserveError):
    """The registry Redis does not answer, and the call needs it."""

    def __init__(self, detail: str) -> None:
        super().__init__(
            f"the registry does not answer ({detail}); a change may or may not have been made: look, and try "
            "again"
        )


class UnreadableRecord(MemserveError):
    """A record of the registry cannot be read. A newer memserve wrote it, or it is damaged."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(
            f"a record of the registry ({what}) cannot be read here: {why}; a newer memserve may have "
            "written it"
        )


class RegistryDiskFull(RegistryUnavailable):
    """The registry Redis answers, and takes no changes, because its disk is nearly full."""

    def __init__(self, retry_after_s: float) -> None:
        MemserveError.__init__(
            self,
            "the registry's disk is nearly full, so no changes are taken; make room there, and try again "
            f"in {retry_after_s:g} s",
        )
        self.retry_after_s = retry_after_s


class CacheUnavailable(MemserveError):
    """The Redis of the KV cache does not answer, and the call needs it."""

    def __init__(self, detail: str) -> None:
        super().__init__(f"the KV cache does not answer ({detail}); try again")


class VectorStoreUnavailable(MemserveError):
    """The vector store does not answer, or not in time."""

    def __init__(self, detail: str) -> None:
        super().__init__(f"the vector store does not answer ({detail}); try again")


class VectorStoreHeld(MemserveError):
    """Another process holds the folder of Milvus Lite."""

    def __init__(self) -> None:
        super().__init__(
            "another process holds the vector store's folder; Milvus Lite serves one gateway: stop the "
            "other, or use a Milvus server"
        )


class VectorStoreDamaged(MemserveError):
    """The folder of Milvus Lite cannot be read."""

    def __init__(self, detail: str) -> None:
        super().__init__(f"the vector store is damaged ({detail}); `memserve restore` brings back a backup")


class EmbedderChanged(MemserveError):
    """Another model embedded the stored memories."""

    def __init__(self, before: str, now: str) -> None:
        super().__init__(
            f"the memories here were embedded by {before}, and {now} would not find them: keep the setting "
            "embedder as it was, or start with another data directory (and another registry) and remember "
            "them there"
        )


class BackupExists(MemserveError):
    """A backup of this name exists."""

    def __init__(self, name: str) -> None:
        super().__init__(f"a backup {name!r} exists already; choose another name")


class BackupNotPossible(MemserveError):
    """memserve cannot back up this installation, or cannot do it now."""

    def __init__(self, why: str) -> None:
        super().__init__(f"no backup: {why}")


class BackupDamaged(MemserveError):
    """A backup's files are not the files that were backed up."""

    def __init__(self, why: str) -> None:
        super().__init__(f"this backup cannot be restored: {why}; use another")


class StartupError(MemserveError):
    """memserve cannot start; the message says what to do."""
