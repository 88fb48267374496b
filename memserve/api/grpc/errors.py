"""The one table from facts to gRPC status codes."""

from __future__ import annotations

import re

import grpc

from memserve import errors
from memserve.disk import DATA_DISK, RETRY_AFTER_S, says_full

DETAIL_MAX = 1000
STATUS: dict[type[errors.MemserveError], grpc.StatusCode] = {
    errors.InvalidField: grpc.StatusCode.INVALID_ARGUMENT,
    errors.InvalidModule: grpc.StatusCode.INVALID_ARGUMENT,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.ModelNotFound: grpc.StatusCode.NOT_FOUND,
    errors.ModuleNotFound: grpc.StatusCode.NOT_FOUND,
    errors.ModuleNotLive: grpc.StatusCode.FAILED_PRECONDITION,
    errors.AliasConflict: grpc.StatusCode.ABORTED,
    errors.OtherBase: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NothingToRollBack: grpc.StatusCode.FAILED_PRECONDITION,
    errors.VersionInUse: grpc.StatusCode.FAILED_PRECONDITION,
    errors.GateRefused: grpc.StatusCode.FAILED_PRECONDITION,
    errors.UploadIncomplete: grpc.StatusCode.DATA_LOSS,
    errors.BlobDamaged: grpc.StatusCode.DATA_LOSS,
    errors.BlobStoreUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.NamespaceNotFound: grpc.StatusCode.NOT_FOUND,
    errors.MemoryNotFound: grpc.StatusCode.NOT_FOUND,
    errors.MemoryConflict: grpc.StatusCode.ALREADY_EXISTS,
    errors.QuotaExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DiskFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.RegistryDiskFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.JournalFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.QuotaReached: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.AuditFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.PrefixNotStored: grpc.StatusCode.FAILED_PRECONDITION,
    errors.PinLimitReached: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.NoWorker: grpc.StatusCode.UNAVAILABLE,
    # Not UNAVAILABLE, after which clients try again by themselves.
    errors.WorkersLost: grpc.StatusCode.INTERNAL,
    errors.GatewayStarting: grpc.StatusCode.UNAVAILABLE,
    errors.WorkerLost: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.RegistryUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.UnreadableRecord: grpc.StatusCode.FAILED_PRECONDITION,
    errors.CacheUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.BackupExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.BackupNotPossible: grpc.StatusCode.FAILED_PRECONDITION,
    errors.BackupDamaged: grpc.StatusCode.DATA_LOSS,
    errors.VectorStoreHeld: grpc.StatusCode.UNAVAILABLE,
    errors.EmbedderChanged: grpc.StatusCode.FAILED_PRECONDITION,
    errors.VectorStoreDamaged: grpc.StatusCode.DATA_LOSS,
    errors.VectorStoreUnavailable: grpc.StatusCode.UNAVAILABLE,
}


WITH_RETRY = (
    errors.QuotaExceeded,
    errors.QuotaReached,
    errors.DiskFull,
    errors.RegistryDiskFull,
    errors.JournalFull,
    errors.NoWorker,
    errors.GatewayStarting,
)
# They say a rule about what the caller sent; nothing of this machine is in them.
QUOTE_THE_CALLER = (errors.InvalidField,)
# A path on this machine: of two steps at least, and no part of a URL, a module reference or a fraction.
_PATH = re.compile(r"(?:unix:(?://)?|(?<![\w/.:@]))/[\w.@+~-]+(?:/[\w.@+~=-]+)+/?")


def status_of(error: errors.MemserveError) -> grpc.StatusCode:
    """The status code of a fact; UNKNOWN for one that the table has forgotten (a test sees to it that there
    is none).
    """
    return STATUS.get(type(error), grpc.StatusCode.UNKNOWN)


def detail_of(error: errors.MemserveError) -> str:
    """What the status says. Bounded, because it may quote what the caller sent, and clients refuse large
    trailers.
    """
    detail = str(error) if isinstance(error, QUOTE_THE_CALLER) else without_paths(str(error))
    return detail if len(detail) <= DETAIL_MAX else detail[:DETAIL_MAX] + "…"


def trailing_metadata(error: errors.MemserveError) -> tuple[tuple[str, str], ...]:
    """What a client can act on without parsing the message: the field at fault, the time to wait."""
    if isinstance(error, errors.InvalidField | errors.InvalidModule):
        # A field may be a tensor's name as uploaded; metadata must be printable ASCII.
        return (
            ("memserve-field", "".join(letter if " " <= letter <= "~" else "?" for letter in error.field)),
        )
    if isinstance(error, WITH_RETRY):
        return (("retry-after-s", f"{error.retry_after_s:g}"),)
    return ()


def without_paths(text: str) -> str:
    """A message of a lower layer as a caller may read it: the log has where the server keeps its things."""
    return _PATH.sub("<a path on the server>", text)


def fact_of(error: BaseException) -> errors.MemserveError | None:
    """What an error is for the caller where it is known: a full disk below any RPC is DiskFull, whoever
    noticed it. None: an incident.
    """
    if says_full(error) and not isinstance(error, errors.DiskFull | errors.RegistryDiskFull):
        return errors.DiskFull(DATA_DISK, RETRY_AFTER_S)
    return error if isinstance(error, errors.MemserveError) else None
