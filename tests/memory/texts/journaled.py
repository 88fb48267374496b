"""Writes as the journal takes them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from memserve.domain import Memory
from memserve.memory.texts.journal import Journal
from memserve.memory.texts.journal_entries import Draft, Growth, Look, Write, erasure, growth, put
from memserve.memory.texts.records import Record, first_history, memory_key, tenant_key

VECTOR = np.arange(384, dtype=np.float32)


def written(tenant: str, memory: Memory, vector: npt.NDArray[np.float32] = VECTOR) -> Write:
    key = memory_key(tenant, memory.namespace, memory.memory_id)
    return put(Record(key, tenant_key(tenant), first_history(memory), vector))


def erased(tenant: str, memory: Memory) -> Write:
    return erasure(memory_key(tenant, memory.namespace, memory.memory_id), tenant_key(tenant), memory)


def draft(write: Write, look: Look, live: int = 1) -> Draft:
    """live: 1 for a memory that is new, 0 for one that was there, -1 for one that leaves."""
    change = growth(None, write.record) if live > 0 else Growth(live, live, 0)
    return Draft(write, look.seen_sequence, change, live > 0)


async def append(journal: Journal, tenant: str, write: Write, live: int = 1) -> int | None:
    look = await journal.look(write.key, tenant, write.namespace)
    return await journal.append(draft(write, look, live), look.last_sequence)
