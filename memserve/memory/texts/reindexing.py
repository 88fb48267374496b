"""Embeds every memory again, by another model, into that model's own collection.

1. `fill` compares both collections page by page, in the order of keys, by the digests of the histories. A
   record that the new collection does not have, or has in an older version, is embedded and put there; one
   that the old collection does not have any more is deleted there.
2. The old collection serves meanwhile. What is written meanwhile is seen by the next pass. `fill` ends after
   a pass that found little.
3. The caller stops writes, brings what was acknowledged into the old collection, and calls `finish`: one more
   pass, flushed, synced, and compared once more.
4. The caller has the new model serve, and calls `drop_before`.

The new collection is the cursor: a run that was cancelled or killed goes on at its end, and embeds nothing
twice.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from memserve.domain import Memory
from memserve.errors import VectorStoreUnavailable
from memserve.memory.texts.index import OWN_WORK, VectorIndex
from memserve.memory.texts.milvus import MilvusMemories, Vectors
from memserve.memory.texts.milvus_reads import KeyDigest
from memserve.memory.texts.records import Record

KEYS_AT_ONCE = 4096
# Of one call of the embedding model.
EMBED_ROWS = 32
DELETE_ROWS = 1024
# `fill` ends after a pass that changed at most so many records, or after so many passes.
CAUGHT_UP_ROWS = 64
PASSES_MAX = 8
TIMEOUT_S = 120.0

T = TypeVar("T")
Embed = Callable[[Sequence[Memory]], Awaitable[npt.NDArray[np.float32]]]
"""[n, dim] of unit length, of the memories in their order, by the new model."""


@dataclass
class ReindexFigures:
    """How far a reindexing is."""

    memories: int = 0
    """In the old collection when the pass began."""
    looked_at: int = 0
    """In this pass."""
    embedded: int = 0
    """In all passes of this process."""
    deleted: int = 0
    """In the new collection, because they have left the old one."""
    passes: int = 0
    """Ended ones."""
    seconds: float = 0.0
    """Since this process began."""


@dataclass(frozen=True, slots=True)
class _Page:
    """A range of keys, as both collections have it."""

    keys: list[KeyDigest]
    """Of the old collection."""
    held: dict[str, str]
    """Digests by key, of the new collection."""

    @property
    def outdated(self) -> list[str]:
        """The keys whose records the new collection does not have as they are."""
        return [key.key for key in self.keys if self.held.get(key.key) != key.digest]

    @property
    def gone(self) -> list[str]:
        """The keys that only the new collection has."""
        return sorted(self.held.keys() - {key.key for key in self.keys})


class Reindexing:
    """From one embedding model's collection to another's, in one Milvus. It belongs to one event loop."""

    def __init__(
        self,
        index: VectorIndex,
        before: Vectors,
        after: Vectors,
        embed: Embed,
        *,
        progress: Callable[[ReindexFigures], None] = lambda figures: None,
        watch: Callable[[], set[str]] | None = None,
        check: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """index: open, with either model.

        before: of the model that the memories are embedded by. after: of the new one.
        progress: called after every batch.
        watch: returns a set to which the keys are added that are written to the old collection from now on.
        `finish` then looks at these alone. None: other processes write to it too.
        check: called before records are put or deleted. Raises when another process has changed the model.
        """
        if before.embedder == after.embedder:
            raise ValueError("both are the same embedding model")
        self.figures = ReindexFigures()
        self._index = index
        self._before = before
        self._after = after
        self._embed = embed
        self._progress = progress
        self._watch = watch
        self._check_model = check
        # The keys that are written to the old collection since the last pass began. None: not known.
        self._written: set[str] | None = None
        self._begun_s = time.monotonic()
        # On the writing thread: the collections that the index was not opened with, and the store of them.
        self._sides: dict[Vectors, MilvusMemories] = {}
        self._opened_by: MilvusMemories | None = None

    async def fill(self) -> None:
        """Embed all, while the old collection serves. Cancelled or failed, it goes on at the next call.

        Raises one of MILVUS_ERRORS, what `embed` raises, and VectorStoreUnavailable when the old collection
        is not there, or older memories are still being moved into it.
        """
        for _ in range(PASSES_MAX):
            written = None if self._watch is None else self._watch()
            changed = await self._pass()
            self._written = written
            await self._flush()
            if changed <= CAUGHT_UP_ROWS:
                return

    async def finish(self) -> None:
        """Catch up with what was written since, and make the new collection durable.

        Nothing may be written to the old collection meanwhile, and what was acknowledged must be in it.
        Raises as `fill` does, and VectorStoreUnavailable when the collections still differ.
        """
        await self._catch_up()
        await self._flush()
        if await self._catch_up():
            raise VectorStoreUnavailable("memories were written while their reindexing was finished")

    async def digests(self, keys: Sequence[str]) -> dict[str, str]:
        """Of the histories that the new collection has, by key."""
        found: dict[str, str] = {}
        for start in range(0, len(keys), DELETE_ROWS):
            page = keys[start : start + DELETE_ROWS]
            found |= await self._write(partial(self._digests, keys=page))
        return found

    async def drop_before(self) -> None:
        """Drop the old model's collection. To be called when the new model serves."""
        await self._write(lambda store: self._side(store, self._before).drop(timeout_s=TIMEOUT_S))

    async def _catch_up(self) -> int:
        """As `_pass`, of what was written since the last pass began."""
        if self._written is None:
            return await self._pass()
        changed, keys = 0, sorted(self._written)
        for start in range(0, len(keys), DELETE_ROWS):
            page = await self._write(partial(self._read_keys, keys=keys[start : start + DELETE_ROWS]))
            outdated = page.outdated
            for first in range(0, len(outdated), EMBED_ROWS):
                changed += await self._move(outdated[first : first + EMBED_ROWS])
            changed += await self._delete(page.gone)
        return changed

    async def _pass(self) -> int:
        """Make the new collection as the old one is. Returns how many records were put or deleted."""
        self.figures.memories = await self._write(self._check)
        self.figures.looked_at = changed = 0
        after = ""
        while True:
            page = await self._write(partial(self._read_page, after=after))
            outdated = page.outdated
            for start in range(0, len(outdated), EMBED_ROWS):
                changed += await self._move(outdated[start : start + EMBED_ROWS])
            changed += await self._delete(page.gone)
            self.figures.looked_at += len(page.keys)
            self._tell()
            if not page.keys:
                self.figures.passes += 1
                self._tell()
                return changed
            after = page.keys[-1].key

    async def _move(self, keys: Sequence[str]) -> int:
        """Embed records and put them. One that has left the old collection is deleted in the next pass."""
        records = await self._write(partial(self._read, keys=keys))
        if records:
            vectors = await self._embed([record.memory for record in records])
            embedded = [
                Record(record.key, record.tenant_key, record.history, vector)
                for record, vector in zip(records, vectors, strict=True)
            ]
            if self._check_model is not None:
                await self._check_model()
            await self._write(partial(self._put, records=embedded))
            self.figures.embedded += len(records)
            self._tell()
        return len(records)

    async def _delete(self, keys: Sequence[str]) -> int:
        for start in range(0, len(keys), DELETE_ROWS):
            page = keys[start : start + DELETE_ROWS]
            if self._check_model is not None:
                await self._check_model()
            await self._write(partial(self._delete_page, keys=page))
            self.figures.deleted += len(page)
        return len(keys)

    async def _flush(self) -> None:
        await self._write(lambda store: self._side(store, self._after).flush(timeout_s=TIMEOUT_S))
        await self._index.sync(MilvusMemories.sync)

    def _check(self, store: MilvusMemories) -> int:
        """The records of the old collection."""
        if store.old is not None:
            raise VectorStoreUnavailable("the memories of an older memserve are being moved")
        # Without this an empty collection would be created, and all of the new one deleted after it.
        if not store.has_vectors_of(self._before.embedder, timeout_s=TIMEOUT_S):
            raise VectorStoreUnavailable("there are no memories that the model before has embedded")
        return self._side(store, self._before).row_count(timeout_s=TIMEOUT_S)

    def _read_page(self, store: MilvusMemories, *, after: str) -> _Page:
        """The next keys of the old collection, and what the new one has up to the last of them. Without next
        keys, all that the new one has behind them.
        """
        old, new = self._side(store, self._before), self._side(store, self._after)
        keys = old.keys_after(after, KEYS_AT_ONCE, timeout_s=TIMEOUT_S)
        until = keys[-1].key if keys else ""
        held: dict[str, str] = {}
        while page := new.keys_after(after, KEYS_AT_ONCE, until=until, timeout_s=TIMEOUT_S):
            held |= {key.key: key.digest for key in page}
            after = page[-1].key
        return _Page(keys, held)

    def _read_keys(self, store: MilvusMemories, *, keys: Sequence[str]) -> _Page:
        old, new = self._side(store, self._before), self._side(store, self._after)
        held = old.digests(keys, timeout_s=TIMEOUT_S)
        return _Page(
            [KeyDigest(key, digest) for key, digest in held.items()], new.digests(keys, timeout_s=TIMEOUT_S)
        )

    def _digests(self, store: MilvusMemories, *, keys: Sequence[str]) -> dict[str, str]:
        return self._side(store, self._after).digests(keys, timeout_s=TIMEOUT_S)

    def _put(self, store: MilvusMemories, *, records: Sequence[Record]) -> None:
        """Without those that have left the old collection while they were embedded: they may be erased."""
        held = self._side(store, self._before).digests([r.key for r in records], timeout_s=TIMEOUT_S)
        current = [record for record in records if record.key in held]
        if current:
            self._side(store, self._after).put(current, timeout_s=TIMEOUT_S)

    def _read(self, store: MilvusMemories, *, keys: Sequence[str]) -> list[Record]:
        return list(self._side(store, self._before).get_many(keys, timeout_s=TIMEOUT_S).values())

    def _delete_page(self, store: MilvusMemories, *, keys: Sequence[str]) -> None:
        self._side(store, self._after).delete(keys, timeout_s=TIMEOUT_S)

    def _side(self, store: MilvusMemories, vectors: Vectors) -> MilvusMemories:
        if store.vectors == vectors:
            return store
        if self._opened_by is not store:  # it was opened again
            self._opened_by = store
            self._sides.clear()
        if vectors not in self._sides:
            self._sides[vectors] = store.beside(vectors, timeout_s=TIMEOUT_S)
        return self._sides[vectors]

    async def _write(self, call: Callable[[MilvusMemories], T]) -> T:
        return await self._index.write(OWN_WORK, call)

    def _tell(self) -> None:
        self.figures.seconds = time.monotonic() - self._begun_s
        self._progress(self.figures)
