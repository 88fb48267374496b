"""What all errors are, and those of wrong values."""

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


class StartupError(MemserveError):
    """memserve cannot start; the message says what to do."""
