"""What the module store's scripts answer, as values."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
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
from memserve.domain.kinds import kind_of_name
from memserve.errors import UnreadableRecord
from memserve.records import known_fields, reading

log = logging.getLogger("memserve.memory.modules.registry.records")


@dataclass(frozen=True, slots=True, order=True)
class Preload:
    """A module that a worker loads when it starts. worker_id: "" for every worker."""

    digest: str
    kind: ModuleKind
    worker_id: str


@dataclass(frozen=True, slots=True)
class CanaryAlias:
    """An alias of which a part is on canaries: versions that share it and had not passed the gate when they
    came to it.

    versions: the canaries, also those that have passed since. revision: the alias's, at which this is so.
    """

    tenant: str
    name: str
    alias: str
    versions: tuple[int, ...]
    revision: int


def read_version(stored: Sequence[Any]) -> ModuleVersion:
    """stored: the version's JSON, its texts', its gate report's, and whether it moves logits. Raises
    UnreadableRecord.
    """
    body, texts, gate, moves_logits = stored
    with reading("ModuleVersion"):
        record = {"recipe": "", "notes": "", "sources": ()} | json.loads(body) | json.loads(texts or "{}")
        fields = known_fields(ModuleVersion, record)
        for name in ("target_modules", "sources", "parents"):
            fields[name] = tuple(map(str, fields[name]))
        fields |= {
            "kind": kind_of_name(fields["kind"]),
            "figures": WeightFigures(**known_fields(WeightFigures, fields["figures"])),
        }
        return ModuleVersion(
            **(fields | {"moves_logits": bool(moves_logits), "gate": _gate(gate) if gate else None})
        )


def _gate(text: str) -> GateReport | None:
    """None for a report that cannot be read: the version then counts as one that the gate has not judged."""
    try:
        with reading("GateReport"):
            fields = known_fields(GateReport, json.loads(text))
            figures = tuple(GateFigure(**known_fields(GateFigure, figure)) for figure in fields["figures"])
            return GateReport(**(fields | {"figures": figures}))
    except UnreadableRecord as error:
        log.warning("a gate report is taken for none: %s", error)
        return None


def read_alias(text: str) -> Alias:
    """Raises UnreadableRecord."""
    with reading("Alias"):
        record = json.loads(text)
        return Alias(**(known_fields(Alias, record) | {"targets": _shares(record["targets"])}))


def _shares(targets: Sequence[Any]) -> tuple[TrafficShare, ...]:
    return tuple(TrafficShare(**known_fields(TrafficShare, share)) for share in targets)


def read_alias_change(text: str) -> AliasChange:
    """Raises UnreadableRecord."""
    with reading("AliasChange"):
        record = json.loads(text)
        own = {"targets": _shares(json.loads(record["targets"])), "at_s": float(record["at_s"])}
        return AliasChange(**known_fields(AliasChange, record | own))


def read_module(described: Sequence[Any]) -> Module:
    """described: name, kind, newest version, number of versions, and the aliases' JSON. Raises
    UnreadableRecord.
    """
    with reading("Module"):
        name, kind, newest, versions, aliases = described
        by_name = sorted((read_alias(shown) for shown in aliases), key=lambda alias: alias.name)
        return Module(name, kind_of_name(kind), int(newest), int(versions), tuple(by_name))


def read_preload(text: str) -> Preload:
    """Raises UnreadableRecord, for a kind of a newer version too."""
    with reading("Preload"):
        fields = known_fields(Preload, json.loads(text))
        return Preload(**(fields | {"kind": kind_of_name(fields["kind"])}))


def read_canary(stored: tuple[str, str]) -> CanaryAlias:
    """stored: tenant, name and alias as JSON, and what is watched. Raises UnreadableRecord."""
    with reading("CanaryAlias"):
        tenant, name, alias = json.loads(stored[0])
        watched = json.loads(stored[1])
        return CanaryAlias(
            tenant, name, alias, tuple(map(int, watched["versions"])), int(watched["revision"])
        )


def read_event(tenant: str, event_id: str, fields: dict[str, str]) -> AuditEvent:
    """An event is shown whatever it lacks: an audit leaves nothing out."""
    text = {name: fields.get(name, "") for name in ("principal", "action", "module", "before", "after")}
    try:
        at_s = float(fields["at_s"])
    except (KeyError, ValueError):
        at_s = int(event_id.partition("-")[0]) / 1000
    return AuditEvent(event_id=event_id, at_s=at_s, tenant=tenant, **text)
