"""The indexes of words of all tenants: which are open, and what brings one up to its rows."""

from __future__ import annotations

import contextlib
import itertools
import logging
import shutil
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

from memserve.memory.texts.local.schema import TOKENIZER_VERSION, Deadline, bounded
from memserve.memory.texts.local.word_index import (
    FoundWords,
    WordIndex,
    WordIndexFailed,
    WordRow,
    words_folder,
)
from memserve.memory.texts.local.writing import Changes, confirm_words, memory_words
from memserve.memory.texts.records import decode_history
from memserve.memory.texts.store import Scope

OPEN_MAX = 64
"""Tenants whose words are open. The least recently used one is closed; it opens again in milliseconds."""
WRITERS_MAX = 8
"""Tenants whose words have a writer, with its threads and buffers."""
_BUILDING = ".building"
_ROWS_AT_ONCE = 1024

log = logging.getLogger(__name__)


class TenantWords:
    """One `WordIndex` for each tenant.

    Any thread may search. All else is for one thread at a time, which passes its connection to the rows.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._open: OrderedDict[str, WordIndex] = OrderedDict()
        self._writers: OrderedDict[str, WordIndex] = OrderedDict()
        self._behind: set[str] = set()
        # Tenants whose words could not be searched, to be indexed anew.
        self._damaged: set[str] = set()
        self._written: dict[str, list[str]] = {}

    def search(self, scope: Scope, words: Sequence[str], limit: int) -> FoundWords:
        """Rows that may be gone since. Raises OSError."""
        if not words_folder(self._folder, scope.tenant_key).exists():
            return FoundWords([], dict.fromkeys(words, 0))
        try:
            return self._index(scope.tenant_key).search(scope, words, limit)
        except WordIndexFailed:
            self._damaged.add(scope.tenant_key)
            raise

    def apply(self, connection: sqlite3.Connection, changes: Changes, deadline: Deadline) -> None:
        """Bring a committed batch in, and everything that is behind for its tenants. Raises OSError."""
        for tenant in changes.tenants:
            if tenant in self._behind or tenant in self._damaged:
                self.bring_up(connection, tenant, deadline)
                continue
            removed = changes.words_removed.get(tenant, [])
            added = changes.words_added.get(tenant, [])
            self._note(connection, tenant)
            self._write(tenant, [*removed, *(row.key for row in added)], added)

    def confirm(self, connection: sqlite3.Connection) -> None:
        """Note what is committed, so that it is not brought in again. Raises sqlite3.Error."""
        written, self._written = self._written, {}
        confirm_words(connection, written)

    def tenants_behind(self, connection: sqlite3.Connection, *, counted: bool) -> list[str]:
        """Tenants whose words are not those of their rows.

        counted: whether to compare numbers of rows too, because the last end was unclean.
        """
        live = dict(connection.execute("SELECT tenant_key, SUM(live) FROM blocks GROUP BY tenant_key"))
        worded = dict(connection.execute("SELECT tenant_key, tokenizer FROM worded"))
        behind = {row[0] for row in connection.execute("SELECT DISTINCT tenant_key FROM unworded")}
        for tenant, rows in live.items():
            if worded.get(tenant) != TOKENIZER_VERSION:
                if rows:
                    behind.add(tenant)
            elif counted and self._rows(tenant) != rows:
                connection.execute("DELETE FROM worded WHERE tenant_key = ?", (tenant,))
                behind.add(tenant)
        return sorted(behind)

    def bring_up(self, connection: sqlite3.Connection, tenant: str, deadline: Deadline) -> None:
        """Bring a tenant's words up to its rows. Raises OSError; then it stays behind."""
        self._behind.add(tenant)
        known = connection.execute("SELECT tokenizer FROM worded WHERE tenant_key = ?", (tenant,)).fetchone()
        if known != (TOKENIZER_VERSION,) or tenant in self._damaged:
            self.build(connection, tenant, deadline)
        else:
            query = "SELECT key FROM unworded WHERE tenant_key = ?"
            keys = [row[0] for row in connection.execute(query, (tenant,))]
            rows = []
            for key in keys:
                deadline.check()
                rows += list(_word_rows(connection, "records.key = ?", key))
            try:
                self._write(tenant, keys, rows)
            except WordIndexFailed as error:
                log.warning("the words of a tenant are indexed anew: %s", error)
                self.build(connection, tenant, deadline)
        self._behind.discard(tenant)

    def build(self, connection: sqlite3.Connection, tenant: str, deadline: Deadline) -> None:
        """Index all words of a tenant anew, in new files. Searches go on with the old ones meanwhile."""
        self._behind.add(tenant)
        folder = words_folder(self._folder, tenant)
        building = folder.with_name(folder.name + _BUILDING)
        shutil.rmtree(building, ignore_errors=True)
        fresh = WordIndex(building)
        try:
            rows = _word_rows(connection, "blocks.tenant_key = ?", tenant)
            while part := list(itertools.islice(rows, _ROWS_AT_ONCE)):
                deadline.check()
                fresh.replace((), part)
            fresh.commit()
            fresh.release()
        except BaseException:
            fresh.remove()
            raise
        with self._lock:
            self._writers.pop(tenant, None)
            if before := self._open.pop(tenant, None):
                before.release()
            # Searches under way end on the files that they have open.
            shutil.rmtree(folder, ignore_errors=True)
            building.rename(folder)
        with bounded(connection, deadline):
            connection.execute("DELETE FROM unworded WHERE tenant_key = ?", (tenant,))
            connection.execute("INSERT OR REPLACE INTO worded VALUES (?, ?)", (tenant, TOKENIZER_VERSION))
        self._written.pop(tenant, None)
        self._behind.discard(tenant)
        self._damaged.discard(tenant)

    @property
    def waiting(self) -> list[str]:
        """Tenants that a failure has left behind."""
        return sorted(self._behind | self._damaged)

    def forget_folder(self, connection: sqlite3.Connection, tenants: Sequence[str]) -> None:
        """Have these tenants' words indexed anew, also after a restart. In the caller's transaction."""
        connection.executemany("DELETE FROM worded WHERE tenant_key = ?", [(tenant,) for tenant in tenants])
        self._behind.update(tenants)

    def close(self) -> None:
        with self._lock:
            for index in self._writers.values():
                index.release()
            self._writers.clear()
            self._open.clear()

    def sweep(self) -> None:
        """Remove what a killed process left half built."""
        for left in (self._folder / "words").glob(f"*{_BUILDING}"):
            shutil.rmtree(left, ignore_errors=True)

    def _note(self, connection: sqlite3.Connection, tenant: str) -> None:
        """A tenant's first words make its index."""
        connection.execute("INSERT OR IGNORE INTO worded VALUES (?, ?)", (tenant, TOKENIZER_VERSION))

    def _rows(self, tenant: str) -> int | None:
        if not words_folder(self._folder, tenant).exists():
            return 0
        with contextlib.suppress(OSError):
            return self._index(tenant).rows
        return None

    def _write(self, tenant: str, removed: Sequence[str], added: Sequence[WordRow]) -> None:
        try:
            index = self._index(tenant)
            self._writers[tenant] = index
            self._writers.move_to_end(tenant)
            while len(self._writers) > WRITERS_MAX:
                self._writers.popitem(last=False)[1].release()
            index.replace(removed, added)
            index.commit()
        except OSError:
            self._behind.add(tenant)
            self._writers.pop(tenant, None)
            with self._lock:
                self._open.pop(tenant, None)
            raise
        self._written.setdefault(tenant, []).extend(removed)

    def _index(self, tenant: str) -> WordIndex:
        with self._lock:
            index = self._open.get(tenant)
            if index is None:
                index = self._open[tenant] = WordIndex(words_folder(self._folder, tenant))
                idle = [name for name in self._open if name not in self._writers and name != tenant]
                for name in idle[: max(0, len(self._open) - OPEN_MAX)]:
                    del self._open[name]
            self._open.move_to_end(tenant)
            return index


def _word_rows(connection: sqlite3.Connection, condition: str, value: str) -> Iterator[WordRow]:
    rows = connection.execute(
        "SELECT key, seq, memory FROM records JOIN blocks USING (block)"
        f" WHERE {condition} AND state = 'live'",
        (value,),
    )
    for key, seq, text in rows:
        memory = decode_history(text).current
        yield WordRow(key, seq, memory.namespace, str(memory.kind), memory.created_s, memory_words(memory))
