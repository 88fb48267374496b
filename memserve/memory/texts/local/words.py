"""The word half of the local index: shards on disk, and the newest rows in memory.

1. A commit of tantivy on disk syncs nine files, which takes 10 to 150 ms. So new rows go into an index in
   memory first, and are found there. A shard takes its new rows when they are `FRESH_MAX`.
2. The rows note which of their changes the shards may lack. They are brought in when the index is opened.
3. A tenant's words are in one shard. An erasure builds the shard anew.
4. What is found may be gone since. The caller reads the rows, and asks for more where some are.
"""

from __future__ import annotations

import itertools
import logging
import shutil
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from memserve.memory.texts.local.schema import TOKENIZER_VERSION, Deadline, bounded
from memserve.memory.texts.local.word_index import (
    WordIndex,
    WordIndexFailed,
    WordRow,
    inverse_frequency,
)
from memserve.memory.texts.local.writing import Changes
from memserve.memory.texts.records import decode_history
from memserve.memory.texts.store import Scope
from memserve.policy.recall.ranking import memory_words

SHARDS = "0123456789abcdef"
"""The first digit of a tenant's key says which shard has its words."""
FRESH_MAX = 1024
"""New rows of a shard in memory. With more the shard takes them in."""
WRITERS_MAX = 4
"""Shards that keep a writer, with its threads and buffers."""
_BUILDING = ".building"
_ROWS_AT_ONCE = 1024

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FoundWords:
    """What words found."""

    seqs: list[int]
    """Numbers of rows, best first. Some may be gone."""
    document_frequency: dict[str, int]


class Words:
    """All words of all tenants.

    Any thread may search. All else is for one thread at a time, which passes its connection to the rows.
    """

    def __init__(self, folder: Path) -> None:
        """folder: the index's. What a killed process left half built is removed."""
        self._folder = folder / "words"
        self._lock = threading.Lock()
        self._shards: dict[str, WordIndex] = {}
        self._writers: list[str] = []
        self._memory = WordIndex(None)
        # By shard, the rows that only the index in memory has; None: the key is gone.
        self._fresh: dict[str, dict[str, WordRow | None]] = {shard: {} for shard in SHARDS}
        # Shards whose files failed, to be built anew.
        self._damaged: set[str] = set()
        for left in self._folder.glob(f"*{_BUILDING}"):
            shutil.rmtree(left, ignore_errors=True)

    def search(self, scope: Scope, words: Sequence[str], rows: int, limit: int) -> FoundWords:
        """Rows of the scope with at least one of the words. Raises OSError.

        rows: the tenant's live ones.
        """
        tenant = scope.tenant_key
        frequency = dict.fromkeys(words, 0)
        memory = self._memory
        try:
            for index in (memory, self._of_tenant(tenant)):
                for word, count in index.frequency(tenant, frequency).items() if index else ():
                    frequency[word] = min(rows, frequency[word] + count)
            weights = {word: inverse_frequency(rows, count) for word, count in frequency.items() if count}
            # First the memory: rows that leave it meanwhile are on disk before.
            hits = memory.search(scope, weights, limit)
            if shard := self._of_tenant(tenant):
                hits += shard.search(scope, weights, limit)
        except WordIndexFailed:
            self._damaged.add(_shard_of(scope.tenant_key))
            raise
        hits.sort(key=lambda hit: -hit[0])
        return FoundWords(list(dict.fromkeys(seq for _, seq in hits))[:limit], frequency)

    def apply(self, connection: sqlite3.Connection, changes: Changes, deadline: Deadline) -> None:
        """Have a committed batch found. Raises OSError."""
        removed = [key for keys in changes.words_removed.values() for key in keys]
        added = [row for rows in changes.words_added.values() for row in rows]
        if not removed and not added:
            return
        for tenant, keys in changes.words_removed.items():
            self._fresh[_shard_of(tenant)].update(dict.fromkeys(keys))
        for row in added:
            self._fresh[_shard_of(row.tenant_key)][row.key] = row
        try:
            self._memory.replace([*removed, *(row.key for row in added)], added)
            self._memory.commit()
        except WordIndexFailed:
            self._begin_memory_anew()
            raise
        for shard, fresh in self._fresh.items():
            if len(fresh) >= FRESH_MAX:
                self.take_in(connection, shard, deadline)

    def take_in(self, connection: sqlite3.Connection, shard: str, deadline: Deadline) -> None:
        """Bring a shard's new rows to disk. Raises OSError; then they stay in memory."""
        fresh = self._fresh[shard]
        if shard in self._damaged:
            self.build(connection, shard, deadline)
            return
        if not fresh:
            return
        index = self._shard(shard, create=True)
        assert index is not None
        self._keep_writer(shard)
        try:
            index.replace(fresh, [row for row in fresh.values() if row is not None])
            index.commit()
        except WordIndexFailed:
            with self._lock:
                self._shards.pop(shard, None)
            self._writers.remove(shard)
            raise
        with bounded(connection, deadline):
            _note(connection, shard)
            connection.executemany(
                "DELETE FROM unworded WHERE shard = ? AND key = ?", [(shard, key) for key in fresh]
            )
        self._left_memory(shard)

    def bring_up(self, connection: sqlite3.Connection, deadline: Deadline, *, compare: bool) -> None:
        """Bring all shards up to their rows, when the index is opened. Raises OSError.

        compare: look at the numbers of rows too, because the last end was unclean.
        """
        known = dict(connection.execute("SELECT shard, tokenizer FROM worded"))
        for shard in SHARDS:
            keys = [
                row[0] for row in connection.execute("SELECT key FROM unworded WHERE shard = ?", (shard,))
            ]
            query = "SELECT COALESCE(SUM(live), 0) FROM blocks WHERE substr(tenant_key, 1, 1) = ?"
            (live,) = connection.execute(query, (shard,)).fetchone()
            if known.get(shard) != TOKENIZER_VERSION or len(keys) > live:
                if live or shard in known:
                    self.build(connection, shard, deadline)
                continue
            try:
                for key in keys:
                    deadline.check()
                    self._fresh[shard][key] = next(_word_rows(connection, "records.key = ?", key), None)
                self.take_in(connection, shard, deadline)
                index = self._shard(shard, create=False)
                matches = not compare or (0 if index is None else index.rows) == live
            except WordIndexFailed as error:
                log.warning("words are indexed anew: %s", error)
                matches = False
            if not matches:
                self.build(connection, shard, deadline)

    def build(self, connection: sqlite3.Connection, shard: str, deadline: Deadline) -> None:
        """Index a shard's words anew, in new files. Searches go on with the old ones meanwhile.

        Raises OSError; then the shard is built when it next takes rows in, or at the next start.
        """
        with bounded(connection, deadline):
            connection.execute("DELETE FROM worded WHERE shard = ?", (shard,))
        self._damaged.add(shard)
        folder = self._folder / shard
        building = folder.with_name(shard + _BUILDING)
        shutil.rmtree(building, ignore_errors=True)
        fresh = WordIndex(building)
        rows = _word_rows(connection, "substr(blocks.tenant_key, 1, 1) = ?", shard)
        while part := list(itertools.islice(rows, _ROWS_AT_ONCE)):
            deadline.check()
            fresh.replace((), part)
        fresh.commit()
        fresh.release()
        with self._lock:
            if before := self._shards.pop(shard, None):
                before.release()
            # Searches under way end on the files that they have open.
            shutil.rmtree(folder, ignore_errors=True)
            building.rename(folder)
        if shard in self._writers:
            self._writers.remove(shard)
        with bounded(connection, deadline):
            connection.execute("DELETE FROM unworded WHERE shard = ?", (shard,))
            _note(connection, shard)
        self._damaged.discard(shard)
        self._left_memory(shard)

    def must_build(self, connection: sqlite3.Connection, tenants: Iterable[str]) -> list[str]:
        """Have the shards of these tenants built anew, also after a restart. Returns the shards."""
        shards = sorted({_shard_of(tenant) for tenant in tenants})
        connection.executemany("DELETE FROM worded WHERE shard = ?", [(shard,) for shard in shards])
        self._damaged.update(shards)
        return shards

    @property
    def damaged(self) -> list[str]:
        return sorted(self._damaged)

    @property
    def fresh_rows(self) -> int:
        """Rows that only the index in memory has."""
        return sum(map(len, self._fresh.values()))

    def close(self) -> None:
        with self._lock:
            for index in self._shards.values():
                index.release()
            self._shards.clear()
            self._memory.release()

    def _left_memory(self, shard: str) -> None:
        """The shard has all that the index in memory had of it."""
        gone, self._fresh[shard] = self._fresh[shard], {}
        if self.fresh_rows:
            self._memory.replace(gone, ())
            self._memory.commit()
        else:
            self._begin_memory_anew()

    def _begin_memory_anew(self) -> None:
        memory = WordIndex(None)
        rows = [row for fresh in self._fresh.values() for row in fresh.values() if row is not None]
        if rows:
            memory.replace((), rows)
            memory.commit()
        before, self._memory = self._memory, memory
        before.release()

    def _keep_writer(self, shard: str) -> None:
        if shard in self._writers:
            self._writers.remove(shard)
        self._writers.append(shard)
        for idle in self._writers[:-WRITERS_MAX]:
            self._shards[idle].release()
        del self._writers[:-WRITERS_MAX]

    def _of_tenant(self, tenant_key: str) -> WordIndex | None:
        return self._shard(_shard_of(tenant_key), create=False)

    def _shard(self, shard: str, *, create: bool) -> WordIndex | None:
        """None: it has no rows on disk yet."""
        with self._lock:
            index = self._shards.get(shard)
            if index is None and (create or (self._folder / shard).exists()):
                index = self._shards[shard] = WordIndex(self._folder / shard)
            return index


def _shard_of(tenant_key: str) -> str:
    """Raises ValueError for what is no tenant key."""
    if tenant_key[:1] not in SHARDS or not tenant_key:
        raise ValueError("a tenant key is 64 hex digits")
    return tenant_key[0]


def _note(connection: sqlite3.Connection, shard: str) -> None:
    connection.execute("INSERT OR REPLACE INTO worded VALUES (?, ?)", (shard, TOKENIZER_VERSION))


def _word_rows(connection: sqlite3.Connection, condition: str, value: str) -> Iterator[WordRow]:
    rows = connection.execute(
        "SELECT key, seq, tenant_key, memory FROM records JOIN blocks USING (block)"
        f" WHERE {condition} AND state = 'live'",
        (value,),
    )
    for key, seq, tenant, text in rows:
        memory = decode_history(text).current
        yield WordRow(
            key, seq, tenant, memory.namespace, str(memory.kind), memory.created_s, memory_words(memory)
        )
