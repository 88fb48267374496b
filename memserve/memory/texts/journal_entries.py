"""What the journal of the vector memory keeps: writes, and what it says of them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from memserve.domain import Memory, MemoryAction, MemoryChange, MemoryState
from memserve.memory.texts.records import (
    Record,
    decode_history,
    encode_history,
    first_history,
    memory_from,
)

VECTOR_BYTES = 4
"""Of one number of a vector."""


@dataclass(frozen=True, slots=True)
class Write:
    """One change of one memory: a whole record, or an erasure."""

    key: str
    """As `memory_key` makes it."""
    tenant_key: str
    namespace: str
    memory_id: str
    record: Record | None
    """With its vector. None: the memory is erased."""
    author: str
    """Names the call that wrote, so that a call that is sent again recognises its own write."""
    sequence: int = 0
    """0 until it is in the journal. Of two writes of a memory the higher one holds."""

    @property
    def memory(self) -> Memory | None:
        return None if self.record is None else self.record.memory

    @property
    def action(self) -> MemoryAction:
        return MemoryAction.ERASED if self.record is None else self.record.history.versions[-1].action

    @property
    def version(self) -> int:
        return 0 if self.record is None else self.record.memory.version


@dataclass(frozen=True, slots=True)
class Growth:
    """What a write adds to what its namespace holds."""

    live: int
    """Live memories."""
    records: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Draft:
    """A write that is to be journaled, and what the caller knew when it decided."""

    write: Write
    seen_sequence: int
    """Of the memory's pending write, 0 for none."""
    growth: Growth
    within_quotas: bool
    """Whether the tenant's quotas may refuse it. They never refuse what takes a memory away."""
    changes_pinned: bool = False
    """Whether the memory is, or was, one of its namespace's pinned ones."""


@dataclass(frozen=True, slots=True)
class Look:
    """What the journal knows of a memory."""

    pending: Write | None
    last_sequence: int
    """The last one that was given, to any write."""
    has_namespace: bool

    @property
    def seen_sequence(self) -> int:
        return self.pending.sequence if self.pending else 0


@dataclass(frozen=True, slots=True)
class Totals:
    """What is counted."""

    memories: int
    """Live ones of all tenants."""
    records: int
    """All of all tenants, also superseded and forgotten ones."""
    pending: int
    """Writes in the journal."""
    bytes: int
    """Of the writes in the journal."""
    is_counted: bool
    """False until `take_over`."""


@dataclass(frozen=True, slots=True)
class Quotas:
    """What one tenant may keep."""

    memories: int = 100_000
    """Live ones. Superseded and forgotten ones count as bytes."""
    namespaces: int = 1000
    bytes: int = 1 << 30
    """Of all records, with their histories and vectors."""


def put(record: Record) -> Write:
    """A write that is not yet in the journal. record: with its vector."""
    memory = record.memory
    return Write(record.key, record.tenant_key, memory.namespace, memory.memory_id, record, uuid.uuid4().hex)


def erasure(key: str, tenant: str, memory: Memory) -> Write:
    """A write that is not yet in the journal. tenant: its key."""
    return Write(key, tenant, memory.namespace, memory.memory_id, None, uuid.uuid4().hex)


def growth(before: Record | None, after: Record | None) -> Growth:
    """What a namespace gains when `after` takes the place of `before`."""
    return Growth(
        _is_live(after) - _is_live(before),
        (after is not None) - (before is not None),
        record_bytes(after) - record_bytes(before),
    )


def record_bytes(record: Record | None) -> int:
    """What a record counts for in its tenant's quota: its history as JSON, and its vector."""
    if record is None:
        return 0
    vector = 0 if record.vector is None else VECTOR_BYTES * len(record.vector)
    return len(encode_history(record.history).encode()) + vector


def pinned_bytes(record: Record | None) -> int:
    """What a record takes of its namespace's warm prefix: the bytes of its text. 0: it has no part in it."""
    if record is None or record.memory.state is not MemoryState.LIVE or not record.memory.pinned:
        return 0
    return len(record.memory.text.encode())


def encode(write: Write) -> bytes:
    """The body of an entry: a line of JSON, then the vector's bytes."""
    record = write.record
    fields = {
        "tenant_key": write.tenant_key,
        "namespace": write.namespace,
        "memory_id": write.memory_id,
        "author": write.author,
        "history": None if record is None else encode_history(record.history),
    }
    vector = b"" if record is None or record.vector is None else np.asarray(record.vector, "<f4").tobytes()
    return json.dumps(fields, ensure_ascii=False).encode() + b"\n" + vector


def decode(key: str, entry: bytes) -> Write:
    """Reads an entry, also one of memserve 0.1.0: it has a memory without a history, or a delete."""
    head, _, vector_bytes = entry.partition(b"\n")
    sequence, _, fields = head.split(b" ", 2)
    body = json.loads(fields)
    if "history" in body:
        history = None if body["history"] is None else decode_history(body["history"])
        memory_id = body["memory_id"]
    else:
        history = None if body["memory"] is None else first_history(memory_from(body["memory"]))
        memory_id = "" if history is None else history.current.memory_id
    vector = np.frombuffer(vector_bytes, "<f4") if vector_bytes else None
    return Write(
        key=key,
        tenant_key=body["tenant_key"],
        namespace=body["namespace"],
        memory_id=memory_id,
        record=None if history is None else Record(key, body["tenant_key"], history, vector),
        author=body["author"],
        sequence=int(sequence),
    )


def _is_live(record: Record | None) -> bool:
    return record is not None and record.memory.state is MemoryState.LIVE


@dataclass(frozen=True, slots=True)
class Model:
    """The embedding model whose vectors are written."""

    embedder: str
    name: str
    default: str
    """The name of the model that "" stands for."""


class WritesHeld(Exception):
    """No write is taken for a moment, while another embedding model takes over."""


def described(draft: Draft) -> dict[str, Any]:
    """A write as the script takes it, without its body."""
    return {
        "key": draft.write.key,
        "namespace": draft.write.namespace,
        "memory_id": draft.write.memory_id,
        "seen": draft.seen_sequence,
        "live": draft.growth.live,
        "records": draft.growth.records,
        "bytes": draft.growth.bytes,
        "within_quotas": draft.within_quotas,
        "version": draft.write.version,
        "action": draft.write.action.value,
        "pinned_bytes": pinned_bytes(draft.write.record),
    }


def last_of(entries: Sequence[tuple[bytes, Mapping[bytes, bytes]]]) -> int:
    """The number of the newest entry of a feed, which comes first; 0 for an empty feed."""
    return int(entries[0][0].partition(b"-")[0]) if entries else 0


def change_of(entry_id: bytes, fields: Mapping[bytes, bytes]) -> MemoryChange:
    """Of an entry of a feed."""
    return MemoryChange(
        int(entry_id.partition(b"-")[0]),
        text_of(fields[b"namespace"]),
        text_of(fields[b"memory_id"]),
        int(fields[b"version"]),
        MemoryAction(text_of(fields[b"action"])),
    )


def text_of(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
