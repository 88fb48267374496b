"""Which version of a module a request gets.

The same session gets the same version as long as the alias's targets stay the same.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

from memserve.domain import TrafficShare
from memserve.errors import InvalidField

TARGETS_MAX = 8


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
    """The version that the session `key` gets.

    A version is chosen with the probability of its weight. The same key always gets the same version. When a
    weight changes, only the sessions move that have to, so that the shares become right again.
    Source: weighted rendezvous hashing (Schindelhauer and Schomaker, 2005).
    """
    return max(
        targets,
        key=lambda target: (-target.weight / math.log(_uniform(f"{target.version}\0{key}")), target.version),
    ).version


def share_of(targets: Sequence[TrafficShare], version: int) -> float:
    """The version's share of the alias's traffic, 0 to 1."""
    return sum(target.weight for target in targets if target.version == version) / sum(
        target.weight for target in targets
    )


def _uniform(text: str) -> float:
    """A number in (0, 1), the same for the same text."""
    # 52 bits. With more bits the highest number is rounded to 1, and the logarithm of 1 is 0.
    return ((int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 12) + 0.5) / 2**52
