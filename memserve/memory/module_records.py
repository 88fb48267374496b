"""What the module store's scripts answer, as values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from memserve.domain import (
    Alias,
    AliasChange,
    AuditEvent,
    GateFigure,
    GateReport,
    Module,
    ModuleKind,
    ModuleVersion,
    TrafficShare,
    WeightFigures,
)


def read_version(stored: Sequence[Any]) -> ModuleVersion:
    """stored: the version's JSON, its texts', its gate report's, and whether it moves logits."""
    body, texts, gate, moves_logits = stored
    fields = {"recipe": "", "notes": "", "sources": ()} | json.loads(body) | json.loads(texts or "{}")
    for name in ("target_modules", "sources", "parents"):
        fields[name] = tuple(fields[name])
    fields |= {"kind": ModuleKind(fields["kind"]), "figures": WeightFigures(**fields["figures"])}
    return ModuleVersion(**fields, moves_logits=bool(moves_logits), gate=_gate(gate) if gate else None)


def _gate(text: str) -> GateReport:
    fields = json.loads(text)
    return GateReport(**{**fields, "figures": tuple(GateFigure(**figure) for figure in fields["figures"])})


def read_alias(text: str) -> Alias:
    fields = json.loads(text)
    return Alias(fields["name"], _shares(fields["targets"]), fields["revision"], fields["changed_s"])


def _shares(targets: Sequence[Any]) -> tuple[TrafficShare, ...]:
    return tuple(TrafficShare(**share) for share in targets)


def read_alias_change(text: str) -> AliasChange:
    entry = json.loads(text)
    targets, at_s = _shares(json.loads(entry["targets"])), float(entry["at_s"])
    return AliasChange(entry["revision"], targets, at_s, entry["principal"], entry["action"], entry["reason"], entry["forced"])


def read_module(described: Sequence[Any]) -> Module:
    """described: name, kind, newest version, number of versions, and the aliases' JSON."""
    name, kind, newest, versions, aliases = described
    by_name = sorted((read_alias(shown) for shown in aliases), key=lambda alias: alias.name)
    return Module(name, ModuleKind(kind), int(newest), int(versions), tuple(by_name))


def read_event(tenant: str, event_id: str, fields: dict[str, str]) -> AuditEvent:
    text = {name: fields[name] for name in ("principal", "action", "module", "before", "after")}
    return AuditEvent(event_id=event_id, at_s=float(fields["at_s"]), tenant=tenant, **text)
