"""What a refusal is to a caller, whichever port it came by: a fact, its text, and what may be tried again."""

from __future__ import annotations

import re

from memserve import errors
from memserve.disk import DATA_DISK, RETRY_AFTER_S, says_full

DETAIL_MAX = 1000
# These facts have a `reason` and a `retry_after_s`, which the caller is told.
WITH_RETRY = (
    errors.QuotaExceeded,
    errors.QuotaReached,
    errors.DiskFull,
    errors.RegistryDiskFull,
    errors.JournalFull,
    errors.NoWorker,
    errors.Overloaded,
    errors.GatewayLeaving,
    errors.GatewayStarting,
    errors.TokenKeysUnavailable,
)
# These state a rule about what the caller sent. They contain no path on this machine.
QUOTE_THE_CALLER = (errors.InvalidField,)
# A path on this machine. It has at least two steps. It is no part of a URL, a module reference or a fraction.
_PATH = re.compile(r"(?:unix:(?://)?|(?<![\w/.:@]))/[\w.@+~-]+(?:/[\w.@+~=-]+)+/?")


def detail_of(error: errors.MemserveError) -> str:
    """The text of the status.

    It is at most DETAIL_MAX characters and an ellipsis, because it may quote what the caller sent. gRPC's
    clients refuse large trailers.
    """
    detail = str(error) if isinstance(error, QUOTE_THE_CALLER) else without_paths(str(error))
    return detail if len(detail) <= DETAIL_MAX else detail[:DETAIL_MAX] + "…"


def utf8(text: str) -> str:
    """What the caller sent may have half of a surrogate pair."""
    return text.encode("utf-8", "replace").decode("utf-8")


def without_paths(text: str) -> str:
    """A message without the paths in it, because callers need not know where the server keeps its files."""
    return _PATH.sub("<a path on the server>", text)


def fact_of(error: BaseException) -> errors.MemserveError | None:
    """The fact that an error is to the caller. None: an incident, which only the log explains.

    An error that says that a disk is full is DiskFull, whichever layer raised it.
    """
    if says_full(error) and not isinstance(error, errors.DiskFull | errors.RegistryDiskFull):
        return errors.DiskFull(DATA_DISK, RETRY_AFTER_S)
    return error if isinstance(error, errors.MemserveError) else None
