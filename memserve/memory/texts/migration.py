"""Moves the memories of memserve 0.1.0 into the collection of today, once.

1. Page by page, in the order of keys, rows are copied that are not in the new collection yet. A migration
   that was killed goes on where the new collection ends: what is there is not copied again.
2. A write or a delete meanwhile goes to the new collection, and its row leaves the old one. So a row that is
   in both is the newer one in the new collection.
3. Of several gateways each may move rows. One that is about to copy a row while another gateway writes it may
   write over it. So a page is copied within APPLY_WITHIN_S after its keys were looked up in the journal, and
   the other gateway's write is verified, and brought again, once it is SETTLED_REMOTE_S old (`settling.py`).
4. The new collection is flushed, its files are synced, and every key of the old one is looked up there. Only
   then is the old collection dropped.

Until then searches and lists are refused, because they would miss memories.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from memserve.errors import VectorStoreUnavailable
from memserve.memory.texts.index import OWN_WORK, VectorIndex
from memserve.memory.texts.journal import Journal
from memserve.memory.texts.milvus import MilvusMemories

PAGE_ROWS = 256
KEYS_AT_ONCE = 4096
TIMEOUT_S = 120.0
PAGE_TIMEOUT_S = 10.0
# As in `settling.py`: a page's writes end before a write of another gateway counts as settled.
APPLY_WITHIN_S = 15.0
LOG_EVERY_S = 5.0
ROUNDS_MAX = 3

log = logging.getLogger(__name__)


@dataclass
class MigrationFigures:
    """How far the move of an older memserve's memories is."""

    memories: int = 0
    """In the old collection when the move began. 0: there was none."""
    looked_at: int = 0
    """Of them, those that are in the new collection or were copied there."""
    copied: int = 0
    """By this process."""

    @property
    def is_under_way(self) -> bool:
        return self.looked_at < self.memories


async def move_old_memories(index: VectorIndex, journal: Journal, figures: MigrationFigures) -> None:
    """Move all, and drop the old collection. Does nothing where there is none.

    To be called before the memories are counted: `MilvusMemories.counts` counts the new collection.
    Cancelled or killed, it goes on at the next call. Raises one of MILVUS_ERRORS, RegistryUnavailable, and
    VectorStoreUnavailable when rows are missing after the move.
    """
    memories = await index.write(OWN_WORK, _old_row_count)
    if memories is None:
        return
    figures.memories = memories
    log.warning("moving %d memories of an older memserve to the new schema of Milvus", memories)
    for _ in range(ROUNDS_MAX):
        await _copy_all(index, journal, figures)
        await index.write(OWN_WORK, lambda store: store.flush(timeout_s=TIMEOUT_S))
        await index.sync(MilvusMemories.sync)
        if not await _missing(index, journal):
            break
    else:
        raise VectorStoreUnavailable("memories of an older memserve are missing after they were moved")
    await index.write(OWN_WORK, lambda store: store.drop_old(timeout_s=TIMEOUT_S))
    figures.looked_at = figures.memories
    log.warning(
        "moved the memories of an older memserve: %d copied, the old collection dropped", figures.copied
    )


async def _copy_all(index: VectorIndex, journal: Journal, figures: MigrationFigures) -> None:
    figures.looked_at, after, logged_s = 0, "", time.monotonic()
    while keys := await index.write(OWN_WORK, partial(_old_keys, after=after)):
        for start in range(0, len(keys), PAGE_ROWS):
            page = keys[start : start + PAGE_ROWS]
            seen_s = time.monotonic()
            pending = await journal.pending_of(page)
            unwritten = [key for key in page if key not in pending]
            figures.copied += await index.write(OWN_WORK, partial(_copy, keys=unwritten, seen_s=seen_s))
            figures.looked_at += len(page)
            if time.monotonic() - logged_s >= LOG_EVERY_S:
                logged_s = time.monotonic()
                log.warning("moved %d of %d memories", figures.looked_at, figures.memories)
        after = keys[-1]


async def _missing(index: VectorIndex, journal: Journal) -> list[str]:
    """The old collection's keys that are neither in the new one nor in the journal."""
    missing: list[str] = []
    after = ""
    while keys := await index.write(OWN_WORK, partial(_old_keys, after=after)):
        unmoved = await index.write(OWN_WORK, partial(_unmoved, keys=keys))
        pending = await journal.pending_of(unmoved)
        missing += [key for key in unmoved if key not in pending]
        after = keys[-1]
    return missing


def _old_row_count(store: MilvusMemories) -> int | None:
    """None: there is no old collection."""
    return None if store.old is None else store.old.row_count(timeout_s=TIMEOUT_S)


def _old_keys(store: MilvusMemories, *, after: str) -> list[str]:
    if store.old is None:
        return []
    return store.old.keys_after(after, KEYS_AT_ONCE, timeout_s=TIMEOUT_S)


def _copy(store: MilvusMemories, *, keys: Sequence[str], seen_s: float) -> int:
    """On the writing thread, so that no write of this process comes between its two halves."""
    if store.old is None or not keys:
        return 0
    held = store.digests(keys, timeout_s=PAGE_TIMEOUT_S)
    records = store.old.get_many(
        [key for key in keys if key not in held], with_vectors=True, timeout_s=PAGE_TIMEOUT_S
    )
    if not store.is_local and time.monotonic() - seen_s > APPLY_WITHIN_S:
        raise VectorStoreUnavailable("a page of old memories has waited too long, and is looked up again")
    store.put_new(list(records.values()), timeout_s=PAGE_TIMEOUT_S)
    return len(records)


def _unmoved(store: MilvusMemories, *, keys: Sequence[str]) -> list[str]:
    held = store.digests(keys, timeout_s=TIMEOUT_S)
    return [key for key in keys if key not in held]
