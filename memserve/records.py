"""Records that other processes wrote, among them newer versions of memserve.

They are read leniently and checked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from memserve.errors import UnreadableRecord

T = TypeVar("T")
Stored = TypeVar("Stored")

# How many unreadable records are remembered as logged. With more of them some are logged again, so that
# memory stays bounded.
LOGGED_MAX = 1024
_PLAIN: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float), "bool": (bool,)}


def known_fields(kind: type, record: Any) -> dict[str, Any]:
    """The fields of the dataclass `kind` that a record has.

    Fields that a newer version has added are left out.

    Raises UnreadableRecord when the record is no object, lacks a field that has no default, or has text where
    a number belongs.
    """
    if not isinstance(record, dict):
        raise UnreadableRecord(kind.__name__, "it is no object")
    known: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.name in record:
            known[field.name] = record[field.name]
            plain = _PLAIN.get(str(field.type))
            wrong = plain is not None and (
                not isinstance(known[field.name], plain)
                or (isinstance(known[field.name], bool) and bool not in plain)
            )
            if wrong:
                raise UnreadableRecord(kind.__name__, f"{field.name} is no {field.type}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UnreadableRecord(kind.__name__, f"{field.name} is missing")
    return known


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn any error of the code that reads a record into UnreadableRecord."""
    try:
        yield
    except (LookupError, ArithmeticError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UnreadableRecord(what, f"{type(error).__name__}: {error}") from error


class LenientReader:
    """Reads lists of records. A record that cannot be read is left out, and logged once."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._logged: OrderedDict[str, None] = OrderedDict()

    def read(self, records: Iterable[Stored], read: Callable[[Stored], T]) -> list[T]:
        values = []
        for record in records:
            try:
                values.append(read(record))
            except UnreadableRecord as error:
                self._log_once(str(error))
        return values

    def _log_once(self, reason: str) -> None:
        if reason not in self._logged:
            self._log.warning("left out: %s", reason)
        self._logged[reason] = None
        self._logged.move_to_end(reason)
        if len(self._logged) > LOGGED_MAX:
            self._logged.popitem(last=False)
