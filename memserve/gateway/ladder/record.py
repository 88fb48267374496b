"""What the ladder remembers of a tenant between two decisions, as JSON in the registry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from memserve.domain.ladder import (
    LadderAction,
    LadderDecision,
    LadderStep,
    LadderUse,
    Rung,
)
from memserve.policy.modules.use_rate import UseRate
from memserve.records import known_fields, reading


@dataclass(slots=True)
class NamespaceRecord:
    """Of one namespace."""

    uses: int = 0
    """Ever, when last read."""
    rate: UseRate = field(default_factory=UseRate)
    rung: Rung = Rung.TEXT
    since_s: float = 0.0
    has_live: bool = False
    """Requests may be answered with a module that was made of its memories."""
    begun: dict[Rung, float] = field(default_factory=dict)
    """Trainings that have been begun and paid, by rung: when."""
    refused: dict[Rung, tuple[float, str]] = field(default_factory=dict)
    """Until when a rung is not tried again, and why."""


@dataclass(slots=True)
class LadderRecord:
    """Of one tenant."""

    at_s: float = 0.0
    """Of the last decision, in seconds since the epoch."""
    sequence: int = -1
    """Of the tenant's last change of a memory that was seen."""
    event: str = ""
    """The tenant's last event of the audit that was seen."""
    period_s: float = 0.0
    """When the period of the budget's seconds began."""
    use: LadderUse = field(default_factory=lambda: LadderUse(0, 0.0))
    cooled: tuple[str, ...] = ()
    """Namespaces whose pinned prefix is not kept warm."""
    namespaces: dict[str, NamespaceRecord] = field(default_factory=dict)
    steps: tuple[LadderStep, ...] = ()

    def encode(self) -> str:
        return json.dumps(asdict(self))


def decode(text: str) -> LadderRecord:
    """Raises UnreadableRecord."""
    with reading("LadderRecord"):
        fields = known_fields(LadderRecord, json.loads(text))
        fields["use"] = LadderUse(**known_fields(LadderUse, fields["use"]))
        fields["cooled"] = tuple(map(str, fields["cooled"]))
        fields["namespaces"] = {name: _namespace(of) for name, of in fields["namespaces"].items()}
        fields["steps"] = tuple(map(_step, fields["steps"]))
        return LadderRecord(**fields)


def _namespace(record: Mapping[str, Any]) -> NamespaceRecord:
    fields = known_fields(NamespaceRecord, record)
    fields["rate"] = UseRate(**known_fields(UseRate, fields["rate"]))
    fields["rung"] = Rung(fields["rung"])
    fields["begun"] = {Rung(rung): float(at_s) for rung, at_s in fields["begun"].items()}
    fields["refused"] = {
        Rung(rung): (float(until_s), str(why)) for rung, (until_s, why) in fields["refused"].items()
    }
    return NamespaceRecord(**fields)


def _step(record: Mapping[str, Any]) -> LadderStep:
    fields = known_fields(LadderStep, record)
    decision = known_fields(LadderDecision, fields["decision"])
    for name in ("before", "after"):
        decision[name] = LadderUse(**known_fields(LadderUse, decision[name]))
    for name in ("from_rung", "to_rung"):
        decision[name] = Rung(decision[name])
    decision["action"] = LadderAction(decision["action"])
    return LadderStep(LadderDecision(**decision), str(fields.get("outcome", "")))
