"""The table from facts to gRPC status codes, and what a status carries beside its text."""

from __future__ import annotations

import grpc
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2

from memserve import errors
from memserve.api.facts import DETAIL_MAX, WITH_RETRY, detail_of, utf8
from memserve.domain.worker_calls import REASON, RETRY_AFTER

RICH_STATUS, DOMAIN = "grpc-status-details-bin", "memserve"
STATUS: dict[type[errors.MemserveError], grpc.StatusCode] = {
    errors.InvalidField: grpc.StatusCode.INVALID_ARGUMENT,
    errors.InvalidModule: grpc.StatusCode.INVALID_ARGUMENT,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.TokenRefused: grpc.StatusCode.UNAUTHENTICATED,
    errors.TokenKeysUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.PriorityDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.ModelNotFound: grpc.StatusCode.NOT_FOUND,
    errors.ModuleNotFound: grpc.StatusCode.NOT_FOUND,
    errors.ModuleNotLive: grpc.StatusCode.FAILED_PRECONDITION,
    errors.AliasConflict: grpc.StatusCode.ABORTED,
    errors.OtherBase: grpc.StatusCode.FAILED_PRECONDITION,
    errors.DistillationFailed: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NothingToRollBack: grpc.StatusCode.FAILED_PRECONDITION,
    errors.VersionInUse: grpc.StatusCode.FAILED_PRECONDITION,
    errors.GateRefused: grpc.StatusCode.FAILED_PRECONDITION,
    errors.UploadIncomplete: grpc.StatusCode.DATA_LOSS,
    errors.BlobDamaged: grpc.StatusCode.DATA_LOSS,
    errors.BlobStoreUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.RequestNotKnown: grpc.StatusCode.NOT_FOUND,
    errors.OutcomeWithoutAnswer: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NamespaceNotFound: grpc.StatusCode.NOT_FOUND,
    errors.ErasureNotFound: grpc.StatusCode.NOT_FOUND,
    errors.MemoryNotFound: grpc.StatusCode.NOT_FOUND,
    errors.MemoryConflict: grpc.StatusCode.ALREADY_EXISTS,
    errors.VersionConflict: grpc.StatusCode.ABORTED,
    errors.VersionNotFound: grpc.StatusCode.NOT_FOUND,
    errors.MatchesChanged: grpc.StatusCode.ABORTED,
    errors.ChangesMissed: grpc.StatusCode.OUT_OF_RANGE,
    errors.QuotaExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DiskFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.RegistryDiskFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.JournalFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.QuotaReached: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.PinnedMemoriesFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.AuditFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.PrefixNotStored: grpc.StatusCode.FAILED_PRECONDITION,
    errors.PinLimitReached: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.NoWorker: grpc.StatusCode.UNAVAILABLE,
    # Clients try again by themselves after UNAVAILABLE, and must not do so here.
    errors.WorkersLost: grpc.StatusCode.INTERNAL,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.GatewayLeaving: grpc.StatusCode.UNAVAILABLE,
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
    errors.EmbedderUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.EmbedderChanged: grpc.StatusCode.FAILED_PRECONDITION,
    errors.VectorStoreDamaged: grpc.StatusCode.DATA_LOSS,
    errors.VectorStoreUnavailable: grpc.StatusCode.UNAVAILABLE,
}


def status_of(error: errors.MemserveError) -> grpc.StatusCode:
    """The status code of a fact. UNKNOWN: the table lacks the fact, which a test rules out."""
    return STATUS.get(type(error), grpc.StatusCode.UNKNOWN)


def trailing_metadata(error: errors.MemserveError) -> tuple[tuple[str, str | bytes], ...]:
    """What a client can act on without parsing the text: the field at fault, or the time to wait.

    It is there twice: by plain names, and as gRPC's richer error model has it (google.rpc.BadRequest,
    ErrorInfo, RetryInfo).
    """
    plain = _plain_metadata(error)
    return (*plain, (RICH_STATUS, _rich_status(error).SerializeToString())) if plain else ()


def _rich_status(error: errors.MemserveError) -> status_pb2.Status:
    message = utf8(detail_of(error))
    status = status_pb2.Status(code=status_of(error).value[0], message=message)
    if isinstance(error, errors.InvalidField | errors.InvalidModule):
        at_fault = error_details_pb2.BadRequest.FieldViolation(
            field=utf8(error.field[:DETAIL_MAX]), description=message
        )
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[at_fault]))
    if isinstance(error, WITH_RETRY):
        status.details.add().Pack(error_details_pb2.ErrorInfo(reason=error.reason.upper(), domain=DOMAIN))
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def _plain_metadata(error: errors.MemserveError) -> tuple[tuple[str, str], ...]:
    if isinstance(error, errors.InvalidField | errors.InvalidModule):
        # Metadata must be printable ASCII. A field may be a tensor's name from an upload, with any letters.
        return (
            ("memserve-field", "".join(letter if " " <= letter <= "~" else "?" for letter in error.field)),
        )
    if isinstance(error, WITH_RETRY):
        return ((REASON, error.reason), (RETRY_AFTER, f"{error.retry_after_s:g}"))
    return ()
