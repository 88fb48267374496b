"""Builds the local index again from Milvus Lite, while writes and searches go on."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import partial

from memserve.memory.texts.index import OWN_WORK, VectorIndex
from memserve.memory.texts.local.index import LocalIndex
from memserve.memory.texts.milvus import MilvusMemories
from memserve.memory.texts.records import Record
from memserve.memory.texts.searched import LocalStore
from memserve.memory.texts.store import RecordStore

PAGE_ROWS = 256
# Milvus Lite looks at all keys for each page of keys.
KEYS_AT_ONCE = 4096
TIMEOUT_S = 120.0
LOG_EVERY_S = 5.0

log = logging.getLogger(__name__)


async def rebuild(index: VectorIndex, local: LocalStore, written: set[str]) -> None:
    """Bring all of Milvus Lite's records into the empty local index.

    written: the keys of what comes into the local index meanwhile by itself. It is newer, and is not written
    over. Raises one of MILVUS_ERRORS.
    """
    figures, after = local.rebuild, ""
    figures.done, figures.is_under_way = 0, True
    figures.total = await index.write(OWN_WORK, lambda store: store.row_count(timeout_s=TIMEOUT_S))
    log.warning(
        "building the local index of %d memories again; searches do not find all until then", figures.total
    )
    logged_s = time.monotonic()
    while keys := await index.write(OWN_WORK, partial(_keys_after, after=after)):
        for start in range(0, len(keys), PAGE_ROWS):
            page = keys[start : start + PAGE_ROWS]
            records = await index.write(OWN_WORK, partial(_read, keys=page))
            await local.write(OWN_WORK, partial(_put_unwritten, records=records, written=written))
            figures.done += len(page)
            if time.monotonic() - logged_s >= LOG_EVERY_S:
                logged_s = time.monotonic()
                log.warning("the local index has %d of %d memories", figures.done, figures.total)
        after = keys[-1]
    await local.sync()
    await local.complete()
    figures.is_under_way = False
    log.warning("the local index is complete, with %d memories", figures.done)


async def repair(index: VectorIndex, local: LocalStore) -> int:
    """Bring what Milvus Lite has lost back from the local index, flushed. Returns how many memories."""
    place, repaired = 0, 0
    while page := await local.read(OWN_WORK, partial(_scan, after=place)):
        repaired += await index.write(OWN_WORK, partial(_put_missing, records=[record for _, record in page]))
        place = page[-1][0]
    if repaired:
        await index.write(OWN_WORK, lambda store: store.flush(timeout_s=TIMEOUT_S))
        await index.sync(MilvusMemories.sync)
        log.warning("brought %d memories that Milvus Lite had lost back from the local index", repaired)
    return repaired


def _scan(store: LocalIndex, *, after: int) -> list[tuple[int, Record]]:
    return store.scan(after, PAGE_ROWS, with_vectors=True, timeout_s=TIMEOUT_S)


def _put_missing(store: MilvusMemories, *, records: Sequence[Record]) -> int:
    held = store.digests([record.key for record in records], timeout_s=TIMEOUT_S)
    missing = [record for record in records if record.key not in held]
    if missing:
        store.put(missing, timeout_s=TIMEOUT_S)
    return len(missing)


def _keys_after(store: MilvusMemories, *, after: str) -> list[str]:
    return [key.key for key in store.keys_after(after, KEYS_AT_ONCE, timeout_s=TIMEOUT_S)]


def _read(store: MilvusMemories, *, keys: Sequence[str]) -> list[Record]:
    return list(store.get_many(keys, with_vectors=True, timeout_s=TIMEOUT_S).values())


def _put_unwritten(store: RecordStore, *, records: Sequence[Record], written: set[str]) -> None:
    """On the writing thread, where nothing comes between the look at `written` and the put."""
    unwritten = [record for record in records if record.key not in written]
    if unwritten:
        store.put(unwritten, timeout_s=TIMEOUT_S)
