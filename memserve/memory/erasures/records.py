"""Erasures as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from memserve.domain import ErasedPlace, TrafficShare
from memserve.domain.lineage import Erasure, ErasureState, MovedAlias, Retraining
from memserve.records import known_fields, reading


@dataclass(frozen=True, slots=True)
class RetiredVersion:
    """A version that knows an erased memory, and what it consists of."""

    module: str
    version: int
    digest: str
    kind: str
    probes_digest: str


@dataclass(slots=True)
class ErasureRecord:
    """An erasure, and what its gateway or another one needs to go on with it."""

    erasure: Erasure
    tenant: str
    principal: str
    reason: str
    memories: tuple[tuple[str, str], ...] = ()
    """Namespace and id of each that is erased: those that were derived first."""
    superseded: tuple[tuple[str, str], ...] = ()
    """Memories whose place a derived one had taken, and that are not back yet."""
    restored: int = 0
    """How many of them are back."""
    versions: tuple[RetiredVersion, ...] = ()
    done: set[str] = field(default_factory=set)
    """Names of steps."""
    erased_s: float = 0.0
    """When its texts were gone. 0: they are not yet."""
    workers: set[str] = field(default_factory=set)
    """Ids of those that still have to forget it."""
    told: set[str] = field(default_factory=set)
    """Ids of those that have."""
    places: dict[str, ErasedPlace] = field(default_factory=dict)


def record_of(record: ErasureRecord) -> str:
    fields = asdict(record)
    fields["done"] = sorted(record.done)
    fields["workers"], fields["told"] = sorted(record.workers), sorted(record.told)
    return json.dumps(fields, separators=(",", ":"))


def read_record(text: str) -> ErasureRecord:
    """Raises UnreadableRecord."""
    with reading("ErasureRecord"):
        fields = known_fields(ErasureRecord, json.loads(text))
        fields["erasure"] = _erasure(fields["erasure"])
        for name in ("memories", "superseded"):
            fields[name] = _pairs(fields[name])
        fields["versions"] = tuple(
            RetiredVersion(**known_fields(RetiredVersion, version)) for version in fields["versions"]
        )
        for name in ("done", "workers", "told"):
            fields[name] = set(map(str, fields[name]))
        fields["places"] = {name: _place(place) for name, place in fields["places"].items()}
        return ErasureRecord(**fields)


def _erasure(stored: Any) -> Erasure:
    fields = known_fields(Erasure, stored)
    fields["state"] = ErasureState(fields["state"])
    fields["places"] = tuple(map(_place, fields["places"]))
    for name in ("derived", "retired", "pending"):
        fields[name] = tuple(map(str, fields[name]))
    fields["aliases"] = tuple(
        MovedAlias(
            **{
                **known_fields(MovedAlias, alias),
                "before": _shares(alias["before"]),
                "after": _shares(alias["after"]),
            }
        )
        for alias in fields["aliases"]
    )
    fields["retraining"] = tuple(
        Retraining(**{**known_fields(Retraining, entry), "memories": _pairs(entry["memories"])})
        for entry in fields["retraining"]
    )
    return Erasure(**fields)


def _place(stored: Any) -> ErasedPlace:
    return ErasedPlace(**known_fields(ErasedPlace, stored))


def _shares(stored: Iterable[Mapping[str, Any]]) -> tuple[TrafficShare, ...]:
    return tuple(TrafficShare(**known_fields(TrafficShare, share)) for share in stored)


def _pairs(stored: Iterable[Iterable[Any]]) -> tuple[tuple[str, str], ...]:
    pairs = []
    for pair in stored:
        namespace, memory_id = pair
        pairs.append((str(namespace), str(memory_id)))
    return tuple(pairs)
