"""Codes: what names one thing exactly, such as `AB-1234/7`, `v1.2.3`, `snake_case`, `4,071` and 2026-11-28.

A code is found as a whole, however its parts are separated, and by its parts, which count less.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from memserve.policy.recall.terms import FormWeight, Term

CONNECTORS = frozenset("-_./:@+,\\")
_CODE_MAX = 64
_INNER_PARTS_MAX = 8
_INNER_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_HAS_DIGIT = re.compile(r"[0-9]")
_VERSION = re.compile(r"[vV]([0-9]+)")
_WITH_DIGITS, _WITHOUT_DIGITS, _PART, _INNER = 1.5, 0.8, 0.5, 0.5
_MONTHS, _DAYS = 12, 31


@dataclass(frozen=True, slots=True)
class Run:
    """Letters and digits with nothing between."""

    text: str
    end: int
    """Where it ends in its text."""
    connector: str
    """What stands between it and the run before. "": nothing is before it."""


def chained(before: str, connector: str, after: str) -> bool:
    """Whether two runs that only this sign parts belong to one code. A comma does between digits alone."""
    return bool(connector) and (connector != "," or (before[-1].isdecimal() and after[0].isdecimal()))


def code_terms(chain: Sequence[Run]) -> tuple[list[Term], float]:
    """The codes that the runs make together, and the weight of a run that is a part of them.

    A single run is a code when it has digits and letters, or capitals inside.
    """
    if not chain:
        return [], 1.0
    if len(chain) == 1:
        return list(_inner_terms(chain[0].text)), 1.0
    has_digits = any(_HAS_DIGIT.search(run.text) for run in chain)
    weight = _WITH_DIGITS if has_digits else _WITHOUT_DIGITS
    forms = _number_forms(chain) if has_digits else []
    if not forms:
        whole = "".join(run.text.casefold() for run in chain)
        forms = [whole] if whole.isalnum() else []
    forms = [form for form in forms if len(form) <= _CODE_MAX]
    if not forms:
        return [], 1.0
    spelt = tuple((form, FormWeight.WHOLE) for form in dict.fromkeys(forms))
    return [Term(spelt, weight, is_code=has_digits)], _PART if has_digits else 1.0


def _inner_terms(run: str) -> Iterator[Term]:
    """The parts of `HTTPServer2`."""
    parts = _INNER_PART.findall(run) if run.isascii() and len(run) <= _CODE_MAX else []
    if 1 < len(parts) <= _INNER_PARTS_MAX:
        for part in parts:
            if len(part) > 1 or part.isdecimal():
                yield Term(((part.lower(), FormWeight.WHOLE),), _INNER)


def _number_forms(chain: Sequence[Run]) -> list[str]:
    """A number, version, date or time, in the spellings that may be meant. Empty when it is none."""
    parts = [run.text for run in chain]
    if version := _VERSION.fullmatch(parts[0]):
        parts[0] = version[1]
    if not all(part.isdecimal() for part in parts):
        return []
    apart = "x".join(parts)
    connectors = {run.connector for run in chain[1:]}
    by_thousands = len(parts[0]) <= 3 and all(len(part) == 3 for part in parts[1:])
    if by_thousands and len(connectors) == 1 and connectors <= {",", "."}:
        return ["".join(parts), apart]
    if len(parts) == 3 and connectors <= {"-", "/", "."}:
        return [*_dates(parts), apart]
    return [apart]


def _dates(parts: Sequence[str]) -> Iterator[str]:
    """Year, month and day. The month may stand before the day or behind it when the year is last."""
    first, second, third = parts
    for year, month, day in ((first, second, third), (third, second, first), (third, first, second)):
        if len(year) != 4 or len(month) > 2 or len(day) > 2:
            continue
        if 1 <= int(month) <= _MONTHS and 1 <= int(day) <= _DAYS:
            yield f"{year}x{int(month):02d}x{int(day):02d}"
