"""A memory with its history, as the journal and the stores keep it."""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from memserve.domain import (
    Link,
    LinkKind,
    Memory,
    MemoryAction,
    MemoryHistory,
    MemoryKind,
    MemoryState,
    MemoryVersion,
    Place,
)

VERSIONS_MAX = 64
"""Versions of one memory. The oldest leaves when another one comes, and is counted as dropped."""
RECORD_MAX_BYTES = 256 << 10
"""Of one memory with its history. The oldest versions leave until it fits."""


@dataclass(frozen=True, slots=True)
class Record:
    """All that is kept of one memory. It is written whole."""

    key: str
    """As `memory_key` makes it."""
    tenant_key: str
    history: MemoryHistory
    vector: npt.NDArray[np.float32] | None = None
    """[dim] of unit length, of the current text. None: it was not read."""

    @property
    def memory(self) -> Memory:
        """Its current version."""
        return self.history.current

    def without_vector(self) -> Record:
        return replace(self, vector=None)


def tenant_key(tenant: str) -> str:
    """The partition key: 64 hex digits, which are safe in any filter whatever the tenant's name is."""
    return hashlib.sha256(tenant.encode()).hexdigest()


def memory_key(tenant: str, namespace: str, memory_id: str) -> str:
    """64 hex digits."""
    # JSON, so that no two lists of parts have the same encoding.
    return hashlib.sha256(json.dumps((tenant, namespace, memory_id)).encode()).hexdigest()


def memory_fields(memory: Memory) -> dict[str, Any]:
    """The memory as JSON has it. `memory_from` reads it."""
    by = memory.superseded_by
    # By hand: `asdict` copies every value, and took a quarter of the time of a write.
    return {
        **{name: getattr(memory, name) for name in _MEMORY_FIELDS},
        "links": [_fields_of(link) for link in memory.links],
        "place": _fields_of(memory.place),
        "superseded_by": None if by is None else _fields_of(by),
    }


def memory_from(fields: Mapping[str, Any]) -> Memory:
    """Reads what `memory_fields` wrote, and what memserve 0.1.0 wrote, which has fewer fields."""
    known = dict(fields)
    known["keywords"] = tuple(known["keywords"])
    if "kind" in known:
        known["kind"] = MemoryKind(known["kind"])
        known["state"] = MemoryState(known["state"])
        known["links"] = tuple(_link(link) for link in known["links"])
        place = known["place"]
        known["place"] = Place(**{**place, "headings": tuple(place["headings"])})
        by = known["superseded_by"]
        known["superseded_by"] = None if by is None else _link(by)
        known["metadata"] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in known["metadata"].items()
        }
    else:
        known["updated_s"] = known["created_s"]
    return Memory(**known)


def encode_history(history: MemoryHistory) -> str:
    """One line of JSON."""
    versions = ", ".join(map(_encode_version, history.versions))
    return f'{{"dropped": {history.dropped}, "versions": [{versions}]}}'


_encoded: dict[int, tuple[weakref.ref[MemoryVersion], str]] = {}


def _encode_version(version: MemoryVersion) -> str:
    """A write is encoded for its size, the journal and both stores. A line is kept as long as its version."""
    number = id(version)
    kept = _encoded.get(number)
    if kept is not None and kept[0]() is version:
        return kept[1]
    line = json.dumps({"action": version.action, "memory": memory_fields(version.memory)}, ensure_ascii=False)
    _encoded[number] = weakref.ref(version, lambda _: _encoded.pop(number, None)), line
    return line


def decode_history(text: str) -> MemoryHistory:
    """Reads what `encode_history` wrote."""
    fields = json.loads(text)
    return MemoryHistory(
        tuple(
            MemoryVersion(memory_from(version["memory"]), MemoryAction(version["action"]))
            for version in fields["versions"]
        ),
        fields["dropped"],
    )


def first_history(memory: Memory) -> MemoryHistory:
    """Of a memory that has one version."""
    return MemoryHistory((MemoryVersion(memory, MemoryAction.REMEMBERED),))


_MEMORY_FIELDS = tuple(field.name for field in fields(Memory))


def _fields_of(value: Link | Place) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in fields(value)}


def _link(fields: Mapping[str, Any]) -> Link:
    return Link(LinkKind(fields["kind"]), fields["memory_id"], fields["namespace"])
