"""Memories that are counted in the registry and missing in Milvus."""

from __future__ import annotations

import logging

from memserve.memory.texts.index import OWN_WORK, VectorIndex
from memserve.memory.texts.journal import Journal

# Counting reads every row.
TIMEOUT_S = 120.0

log = logging.getLogger(__name__)

Counts = dict[tuple[str, str], int]


async def missing_memories(journal: Journal, index: VectorIndex) -> Counts:
    """How many memories are missing, by tenant key and namespace. Empty when none is.

    Writes meanwhile may hide a loss, and never invent one: the lower count of before and after is taken.
    """
    totals = await journal.totals()
    rows = await index.write(OWN_WORK, lambda store: store.row_count(timeout_s=TIMEOUT_S))
    if totals.records - totals.pending <= rows:
        return {}
    before = await _expected(journal)
    held = await index.write(OWN_WORK, lambda store: store.counts(timeout_s=TIMEOUT_S))
    after = await _expected(journal)
    missing = {
        name: min(memories, after.get(name, 0)) - held.get(name, 0) for name, memories in before.items()
    }
    lost = {name: memories for name, memories in missing.items() if memories > 0}
    if lost:
        log.error(
            "the vector store is damaged: of %d namespaces %d memories are missing; `memserve restore` "
            "brings back a backup",
            len(lost),
            sum(lost.values()),
        )
    return lost


async def _expected(journal: Journal) -> Counts:
    """The memories that Milvus should have: the counted ones, without those that wait in the journal."""
    counts = {
        (tenant, name): memories
        async for tenant, names in journal.all_namespaces()
        for name, memories in names.items()
    }
    async for page in journal.pending():
        for write in page:
            if write.record is not None:
                namespace = write.tenant_key, write.namespace
                counts[namespace] = counts.get(namespace, 0) - 1
    return counts
