"""What a version that is trained on must still know: its parent's questions, asked at its own gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from memserve.errors import InvalidField
from memserve.policy.modules.gate import ProbeKind, ProbeSet

KEPT_SHARE = 0.95
"""Of what the parent answered at its own gate."""
MOST_KEPT = 8
"""Versions behind one another whose questions are asked."""
PREFIX = "kept."
MAX_NAME = 64


def what_it_knew(
    module: str, number: int, sets: Sequence[ProbeSet], measured: Mapping[str, float]
) -> tuple[ProbeSet, ...]:
    """The sets that ask a new version for what its parent knew.

    sets: the parent's. measured: by set, the parent's share of right answers at its gate. A set that was not
    measured counts with its target. Raises InvalidField when too many versions stand behind one another.
    """
    kept = [each for each in sets if each.kind is ProbeKind.CUSTOM and each.name.startswith(PREFIX)]
    for each in sets:
        if each.kind is ProbeKind.RECALL:
            name = f"{module}.{number}.{each.name}"[-(MAX_NAME - len(PREFIX)) :]
            bar = round(KEPT_SHARE * measured.get(each.name, each.target), 4)
            kept.append(replace(each, name=PREFIX + name, kind=ProbeKind.CUSTOM, target=1.0, at_least=bar))
    if len(kept) > MOST_KEPT:
        raise InvalidField(
            "from_reference",
            f"{module}@{number} and those before it bring {len(kept)} sets of questions, at most {MOST_KEPT} "
            "are asked; distil all memories anew",
        )
    return tuple(kept)
