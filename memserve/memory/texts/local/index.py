"""The local index: a store of records in one folder of this machine.

1. The rows are in SQLite, and are the truth of this index. A batch is one transaction.
2. The words are in tantivy. The rows note which of their changes its files may lack.
3. The vectors are in memory by namespace, read from the rows when they are first searched. A scan in half
   precision gives candidates, and the rows' exact vectors decide.
4. What a half finds is read from the rows again, so that nothing is returned that is gone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from memserve.domain import LinkKind, Memory, MemoryState
from memserve.memory.texts.local import folder as files
from memserve.memory.texts.local.erasing import clean_rows, pieces_of
from memserve.memory.texts.local.reading import BlockCounts, RowReader, place_of
from memserve.memory.texts.local.schema import SEQ_JUMP, Deadline, bounded, connect, os_errors
from memserve.memory.texts.local.vectors import SCORE_ERROR, Candidate, VectorBlock, VectorBlocks
from memserve.memory.texts.local.words import SHARDS, Words
from memserve.memory.texts.local.writing import Changes, new_rows, write_batch
from memserve.memory.texts.records import Record
from memserve.memory.texts.store import DenseHit, ListOrder, Scope, WordHits

CANDIDATES_MAX = 4096
"""Rows that are scored exactly. With more within `SCORE_ERROR` of the last hit, some may be missed."""
_MORE_CANDIDATES = 32
CLOSE_TIMEOUT_S = 60.0
OPEN_TIMEOUT_S = 3600.0
"""Bound on bringing words up to their rows when the index is opened."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LocalFigures:
    """What the index takes."""

    rows: int
    disk_bytes: int
    vector_bytes: int
    """Of the vectors in memory."""
    last_commit_s: float
    """How long the last batch took, words and vectors included."""


@dataclass(frozen=True, slots=True)
class Erased:
    """What an erasure did."""

    rows: int
    rewrote_rows: bool
    """Whether the file of rows was written anew."""
    shards: int
    """Parts of the index of words that were built anew."""


class LocalIndex:
    """A store of records. Open it with `open` or `begin_rebuild`, end it with `close`.

    Any thread may call any method. Reads run side by side. Writes take turns, and wait for one another no
    longer than their timeout.

    Methods raise OSError: TimeoutError when they are late, ENOSPC when the disk is full, RowsDamaged. A write
    that raises may have been made, or made in part; making it again is safe. `put` raises ValueError for a
    vector of another size.
    """

    def __init__(self, folder: Path, dim: int, lock: int, vector_bytes: int) -> None:
        """For `open` and `begin_rebuild`."""
        self._folder = folder
        self._dim = dim
        self._lock_file = lock
        self._reader = RowReader(folder, dim)
        self._vectors = VectorBlocks(vector_bytes)
        self._words = Words(folder)
        self._write_lock = threading.Lock()
        self._rows = connect(folder, read_only=False)
        self._next_seq = 0
        self._last_commit_s = 0.0
        self._closed = False

    @classmethod
    def open(
        cls, folder: Path, dim: int, embedder: str, *, vector_bytes: int = 1 << 30, check: bool = False
    ) -> Self:
        """Open the folder, which is made where there is none. Words are brought up to their rows.

        embedder: which model the vectors are from, as a digest or a name.
        vector_bytes: bound on the vectors in memory. One namespace is always held.
        check: read every page first, as after an unclean end. To be used when RowsDamaged was raised.
        Raises IndexNeedsRebuild, VectorStoreHeld, OSError.
        """
        prepare = partial(files.prepare, folder, dim, embedder, check=check)
        return cls._prepared(folder, dim, prepare, vector_bytes)

    @classmethod
    def begin_rebuild(
        cls, folder: Path, dim: int, embedder: str, *, vector_bytes: int = 1 << 30, resume: bool = False
    ) -> Self:
        """An empty index that is filled with `put` and ended with `finish_rebuild`.

        It may be searched meanwhile, for what it has. Until then `open` raises IndexNeedsRebuild.

        resume: go on with what an unfinished rebuild has. Putting a record again is safe.
        """
        prepare = partial(files.begin_anew, folder, dim, embedder, resume=resume)
        return cls._prepared(folder, dim, prepare, vector_bytes)

    @classmethod
    def _prepared(cls, folder: Path, dim: int, prepare: Callable[[], None], vector_bytes: int) -> Self:
        """prepare: called while the folder is held."""
        lock = files.hold(folder)
        try:
            with os_errors():
                prepare()
                index = cls(folder, dim, lock, vector_bytes)
                index._begin()
        except BaseException:
            os.close(lock)
            raise
        return index

    def finish_rebuild(self, *, timeout_s: float = OPEN_TIMEOUT_S) -> None:
        """Let the index be used from now on, also after the next start."""
        with self._writing(timeout_s) as deadline:
            for shard in SHARDS:
                self._words.take_in(self._rows, shard, deadline)
            self._rows.execute("DELETE FROM meta WHERE name = 'unfinished'")
            files.sync_rows(self._folder)

    def put(self, records: Sequence[Record], *, timeout_s: float) -> None:
        self.apply(records, (), timeout_s=timeout_s)

    def delete(self, keys: Sequence[str], *, timeout_s: float) -> None:
        self.apply((), keys, timeout_s=timeout_s)

    def apply(self, records: Sequence[Record], deleted_keys: Sequence[str], *, timeout_s: float) -> None:
        """Put records and delete keys in one commit. A key in both is put.

        It outlives the process. `sync` makes it outlive a power cut.
        """
        deadline = Deadline.after(timeout_s)
        rows = new_rows(records, self._dim)
        kept = {row.key for row in rows}
        deleted = [key for key in dict.fromkeys(deleted_keys) if key not in kept]
        if not rows and not deleted:
            return
        began_s = time.monotonic()
        with self._writing(deadline.left_s) as deadline:
            changes = write_batch(self._rows, rows, deleted, self._next_seq, deadline)
            self._next_seq += len(rows)
            self._take_in(changes, deadline)
        self._last_commit_s = time.monotonic() - began_s

    def erase(self, keys: Sequence[str], *, timeout_s: float) -> Erased:
        """Delete records so that their bytes are in no file of the index when this returns.

        Words of the same shard are indexed anew. When it raises, the records are deleted all the same, and a
        repeated call or the next start cleans the files.
        """
        with self._writing(timeout_s) as deadline:
            pieces = [piece for key in keys for piece in pieces_of(self._rows, key)]
            changes = write_batch(self._rows, (), list(dict.fromkeys(keys)), self._next_seq, deadline)
            self._vectors.drop(changes.blocks)
            with bounded(self._rows, deadline):
                self._rows.execute("INSERT OR REPLACE INTO meta VALUES ('unclean_rows', '1')")
                self._words.must_build(self._rows, changes.removed_of)
            shards = self._words.damaged
            for shard in shards:
                self._words.build(self._rows, shard, deadline)
            return self._clean(changes.removed, pieces, len(shards), deadline)

    def _clean(self, rows: int, pieces: Sequence[bytes], shards: int, deadline: Deadline) -> Erased:
        """Clean the file of rows. An erasure before may have left it to this one."""
        rewrote = clean_rows(self._rows, self._folder, pieces, deadline)
        with bounded(self._rows, deadline):
            self._rows.execute("DELETE FROM meta WHERE name = 'unclean_rows'")
        return Erased(rows, rewrote, shards)

    def sync(self) -> None:
        """Everything that was put or deleted before is on disk when this returns. Raises OSError."""
        files.sync_rows(self._folder)

    def mend(self, *, timeout_s: float) -> int:
        """Build the words anew that a failure has damaged. Returns how many of their parts."""
        with self._writing(timeout_s) as deadline:
            damaged = self._words.damaged
            for shard in damaged:
                self._words.build(self._rows, shard, deadline)
        return len(damaged)

    def get_many(
        self, keys: Sequence[str], *, with_vectors: bool = False, timeout_s: float
    ) -> dict[str, Record]:
        return self._reader.get_many(keys, with_vectors=with_vectors, deadline=Deadline.after(timeout_s))

    def nearest(
        self, scope: Scope, vector: npt.NDArray[np.float32], limit: int, *, timeout_s: float
    ) -> list[DenseHit]:
        """The exact nearest, as `CANDIDATES_MAX` says."""
        deadline = Deadline.after(timeout_s)
        if MemoryState.LIVE not in scope.states:
            return []
        blocks = list(self._reader.blocks(scope, deadline).values())
        loaded = [(block, self._block(block, deadline)) for block in blocks]
        query = np.ascontiguousarray(vector, np.float32)
        asked = limit + _MORE_CANDIDATES
        while True:
            deadline.check()
            candidates = _scan(loaded, scope, query, asked)
            places = [place for place, _ in candidates]
            hits = self._reader.nearest(scope, places, query, limit, deadline=deadline)
            if len(candidates) < asked or asked >= CANDIDATES_MAX:
                return hits
            # No row beyond the candidates is nearer than the last of them and the error together.
            if len(hits) == limit and hits[-1].cosine >= candidates[-1][1].score + SCORE_ERROR:
                return hits
            asked = min(CANDIDATES_MAX, asked * 4)

    def by_words(self, scope: Scope, words: Sequence[str], limit: int, *, timeout_s: float) -> WordHits:
        deadline = Deadline.after(timeout_s)
        counts = self._reader.counts(deadline, scope.tenant_key).values()
        rows = sum(count.live for count in counts)
        mean_length = sum(count.words for count in counts) / max(1, rows)
        asked = limit
        while True:
            deadline.check()
            found = self._words.search(scope, words, rows, asked)
            memories: list[tuple[str, Memory]] = []
            if MemoryState.LIVE in scope.states:
                memories = self._reader.live(scope, found.seqs, deadline=deadline)
            # Rows that left a moment ago have taken others' places.
            if len(memories) >= limit or len(found.seqs) < asked or asked >= CANDIDATES_MAX:
                break
            if MemoryState.LIVE not in scope.states:
                break
            asked = min(CANDIDATES_MAX, asked * 4)
        return WordHits(tuple(memories[:limit]), found.document_frequency, rows, mean_length)

    def page(
        self,
        scope: Scope,
        order: ListOrder,
        limit: int,
        *,
        descending: bool = False,
        after: tuple[object, str, str] | None = None,
        timeout_s: float,
    ) -> list[Record]:
        return self._reader.page(
            scope, order, limit, descending=descending, after=after, deadline=Deadline.after(timeout_s)
        )

    def at_places(
        self, scope: Scope, within: str, first: int, last: int, *, timeout_s: float
    ) -> list[Memory]:
        return self._reader.at_places(scope, within, first, last, deadline=Deadline.after(timeout_s))

    def linking_to(
        self, scope: Scope, target_namespace: str, memory_id: str, kinds: frozenset[LinkKind], limit: int,
        *, timeout_s: float,
    ) -> list[Memory]:  # fmt: skip
        """In the order of namespaces and ids."""
        return self._reader.linking_to(
            scope, (target_namespace, memory_id), kinds, limit, deadline=Deadline.after(timeout_s)
        )

    def row_count(self, *, timeout_s: float) -> int:
        return sum(count.records for count in self.counts(timeout_s=timeout_s).values())

    def counts(self, *, timeout_s: float) -> Mapping[tuple[str, str], BlockCounts]:
        """By tenant key and namespace, without reading rows. Namespaces without a record are left out."""
        return self._reader.counts(Deadline.after(timeout_s))

    def scan(
        self, after: int, limit: int, *, with_vectors: bool = False, timeout_s: float
    ) -> list[tuple[int, Record]]:
        """All tenants' records, with numbers to go on after. A record that is put meanwhile comes again."""
        return self._reader.scan(after, limit, with_vectors=with_vectors, deadline=Deadline.after(timeout_s))

    def warm(self, scope: Scope, *, timeout_s: float) -> int:
        """Have the vectors of these namespaces in memory, within the bound. Returns their bytes."""
        deadline = Deadline.after(timeout_s)
        blocks = self._reader.blocks(scope, deadline).values()
        return sum(self._block(block, deadline).memory_bytes for block in blocks)

    def figures(self, *, timeout_s: float) -> LocalFigures:
        return LocalFigures(
            self.row_count(timeout_s=timeout_s),
            files.disk_bytes(self._folder),
            self._vectors.memory_bytes,
            self._last_commit_s,
        )

    def close(self) -> None:
        """Finish the write under way, and release the folder. Safe to call twice."""
        with self._write_lock:
            if self._closed:
                return
            self._closed = True
            self._reader.close()
            with contextlib.suppress(sqlite3.Error, OSError):
                for shard in SHARDS:
                    self._words.take_in(self._rows, shard, Deadline.after(CLOSE_TIMEOUT_S))
                self._words.close()
                self._rows.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                files.sync_rows(self._folder)
                if not self._words.damaged:
                    self._rows.execute("INSERT OR REPLACE INTO meta VALUES ('clean', '1')")
            self._vectors.drop()
            self._rows.close()
            os.close(self._lock_file)

    def _begin(self) -> None:
        """Number new rows behind all others, and bring words up to their rows."""
        (last,) = self._rows.execute("SELECT COALESCE(MAX(seq), 0) FROM records").fetchone()
        clean = self._rows.execute("SELECT value FROM meta WHERE name = 'clean'").fetchone() == ("1",)
        self._next_seq = last + 1 + (0 if clean else SEQ_JUMP)
        self._rows.execute("INSERT OR REPLACE INTO meta VALUES ('clean', '0')")
        deadline = Deadline.after(OPEN_TIMEOUT_S)
        self._words.bring_up(self._rows, deadline, compare=not clean)
        if self._rows.execute("SELECT 1 FROM meta WHERE name = 'unclean_rows'").fetchone():
            with bounded(self._rows, deadline):
                self._rows.execute("VACUUM")
            self._clean(0, (), 0, deadline)

    def _take_in(self, changes: Changes, deadline: Deadline) -> None:
        self._vectors.apply(changes.blocks)
        self._words.apply(self._rows, changes, deadline)

    def _block(self, block: int, deadline: Deadline) -> VectorBlock:
        return self._vectors.block(
            block, lambda: self._reader.load_block(block, deadline), max(0.0, deadline.left_s)
        )

    @contextlib.contextmanager
    def _writing(self, timeout_s: float) -> Iterator[Deadline]:
        deadline = Deadline.after(timeout_s)
        if not self._write_lock.acquire(timeout=max(0.0, timeout_s)):
            raise TimeoutError("the local index is busy with other writes")
        try:
            if self._closed:
                raise OSError("the local index is closed")
            with os_errors():
                yield deadline
        finally:
            self._write_lock.release()


def _scan(
    blocks: Sequence[tuple[int, VectorBlock]], scope: Scope, query: npt.NDArray[np.float32], limit: int
) -> list[tuple[int, Candidate]]:
    """The best candidates of all blocks with their places, best first."""
    found = [
        (place_of(block, candidate.seq), candidate)
        for block, vectors in blocks
        for candidate in vectors.scan(scope, query, limit)
    ]
    found.sort(key=lambda entry: -entry[1].score)
    return found[:limit]
