"""Records for the contract of a store of records, and for the tests of one store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from memserve.domain import Memory, MemoryAction, MemoryHistory, MemoryVersion
from memserve.memory.texts.records import Record, memory_key, tenant_key
from memserve.memory.texts.store import Scope

DIM = 16
CREATED_S = 1_700_000_000.0
DEFAULT_NAMESPACE = "notes"

Vector = npt.NDArray[np.float32]


def vector_of(number: int, dim: int = DIM) -> Vector:
    """[dim] of unit length, another one for each number."""
    return unit(np.random.default_rng(number).standard_normal(dim))


def unit(vector: npt.ArrayLike) -> Vector:
    """[dim] of unit length in this direction."""
    array = np.asarray(vector, np.float32)
    return (array / np.linalg.norm(array)).astype(np.float32)


def memory_of(memory_id: str, text: str = "", **fields: Any) -> Memory:
    """A memory with the least that it needs. fields: those of `Memory`."""
    return Memory(
        **{
            "memory_id": memory_id,
            "namespace": DEFAULT_NAMESPACE,
            "text": text or f"the text of {memory_id}",
            "source": "a test",
            "keywords": (),
            "created_s": CREATED_S,
            "updated_s": CREATED_S,
            **fields,
        }
    )


def record_of(
    tenant: str, memory: Memory, vector: Vector | None = None, *, before: Iterable[Memory] = ()
) -> Record:
    """The record of a memory. before: its older versions, oldest first."""
    versions = [MemoryVersion(version, MemoryAction.REMEMBERED) for version in before]
    action = MemoryAction.UPDATED if versions else MemoryAction.REMEMBERED
    return Record(
        memory_key(tenant, memory.namespace, memory.memory_id),
        tenant_key(tenant),
        MemoryHistory((*versions, MemoryVersion(memory, action))),
        vector_of(sum(memory.memory_id.encode())) if vector is None else vector,
    )


def changed(record: Record, **fields: Any) -> Record:
    """The record with one more version, in which these fields of its memory differ."""
    after = replace(record.memory, version=record.memory.version + 1, **fields)
    versions = (*record.history.versions, MemoryVersion(after, MemoryAction.UPDATED))
    return replace(record, history=MemoryHistory(versions, record.history.dropped))


def scope_of(tenant: str, *namespaces: str, **fields: Any) -> Scope:
    """fields: those of `Scope`."""
    return Scope(tenant_key(tenant), namespaces or (DEFAULT_NAMESPACE,), **fields)


def ids(found: Sequence[Any]) -> list[str]:
    """The ids of memories, of records, of hits by meaning, or of pairs with a key, in order."""
    return [_memory(entry).memory_id for entry in found]


def _memory(entry: Any) -> Memory:
    if isinstance(entry, Memory):
        return entry
    memory = entry[1] if isinstance(entry, tuple) else entry.memory
    assert isinstance(memory, Memory)
    return memory
