"""Which version of a module a request gets. Pure: the same session gets the same version as long as the
alias's targets stay.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from memserve.domain import TrafficShare
from memserve.errors import InvalidField

LIVE = "live"
TARGETS_MAX = 8
_REFERENCE = re.compile(
    r"(?P<name>[a-z0-9][a-z0-9._-]{0,63})(@(?:(?P<version>[1-9][0-9]{0,8})|(?P<alias>[a-z][a-z0-9._-]{0,63})))?"
)
_ALIAS = re.compile(r"[a-z][a-z0-9._-]{0,63}")
REFERENCE_RULE = (
    "must be a module's name, name@alias or name@number: names have 1-64 of a-z 0-9 . _ - and start "
    "with a letter or a digit, aliases with "
    "a letter, numbers are from 1 to 999999999"
)


@dataclass(frozen=True, slots=True)
class Reference:
    """What a request names: a version number, or (number 0) an alias."""

    name: str
    alias: str
    number: int

    def __str__(self) -> str:
        return f"{self.name}@{self.number or self.alias}"


def parse_reference(field: str, text: str) -> Reference:
    """`name` is its alias `live`. Raises InvalidField."""
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise InvalidField(field, REFERENCE_RULE)
    if match["version"]:
        return Reference(match["name"], "", int(match["version"]))
    return Reference(match["name"], match["alias"] or LIVE, 0)


def check_alias_name(field: str, name: str) -> None:
    """Raises InvalidField."""
    if not _ALIAS.fullmatch(name):
        raise InvalidField(field, "must be 1-64 of a-z 0-9 . _ -, starting with a letter")


def check_targets(field: str, targets: Sequence[TrafficShare]) -> None:
    """Raises InvalidField."""
    if not 1 <= len(targets) <= TARGETS_MAX:
        raise InvalidField(field, f"from 1 to {TARGETS_MAX} versions")
    for number, target in enumerate(targets):
        if target.version < 1:
            raise InvalidField(f"{field}[{number}].version", "must be 1 or more")
        if not (math.isfinite(target.weight) and 0 < target.weight <= 1e6):
            raise InvalidField(f"{field}[{number}].weight", "must be above 0 and at most 1000000")
    if len({target.version for target in targets}) < len(targets):
        raise InvalidField(field, "names a version twice")


def choose_version(targets: Sequence[TrafficShare], key: str) -> int:
    """The version that the session `key` gets: each with the probability of its weight, and always the same
    one.

    When a weight changes, only as many sessions move as must.
    Source: weighted rendezvous hashing (Schindelhauer and Schomaker, 2005).
    """
    return max(
        targets,
        key=lambda target: (-target.weight / math.log(_uniform(f"{target.version}\0{key}")), target.version),
    ).version


def share_of(targets: Sequence[TrafficShare], version: int) -> float:
    """The version's part of the alias, 0 to 1."""
    return sum(target.weight for target in targets if target.version == version) / sum(
        target.weight for target in targets
    )


def _uniform(text: str) -> float:
    """A number in (0, 1), the same for the same text."""
    # 52 bits: with more, the highest would be rounded to 1, whose logarithm is 0.
    return ((int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 12) + 0.5) / 2**52
