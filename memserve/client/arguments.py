"""Checks of arguments that callers of the client may write in more than one way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from memserve.errors import UsageError


def strings(field: str, value: str | Iterable[str]) -> list[str]:
    """A list of strings. A single string becomes a list of one, because nobody means its letters.

    field: the argument that UsageError names.
    Raises UsageError for any other value.
    """
    if isinstance(value, str):
        return [value]
    if isinstance(value, bytes | Mapping) or not isinstance(value, Iterable):
        raise UsageError(field, f"must be a string or a list of strings, not {type(value).__name__}")
    entries = list(value)
    for entry in entries:
        if not isinstance(entry, str):
            raise UsageError(
                field, f"must be a string or a list of strings; there is a {type(entry).__name__} in it"
            )
    return entries


def seconds(timeout_s: float) -> float:
    """The same timeout. Raises UsageError unless it is over 0."""
    if not timeout_s > 0:
        raise UsageError("timeout_s", f"must be over 0 seconds, not {timeout_s}")
    return timeout_s
