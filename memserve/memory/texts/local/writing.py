"""One group commit into the rows of the local index, and what it changes in the other two halves."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from memserve.domain import LinkKind, Memory, MemoryHistory, MemoryState
from memserve.memory.texts.local.schema import SEQ_BITS, Deadline, bounded
from memserve.memory.texts.local.vectors import BlockChange, Floats, VectorRow
from memserve.memory.texts.local.word_index import WordRow
from memserve.memory.texts.records import Record, decode_history, encode_history
from memserve.policy.recall.ranking import memory_words


@dataclass(frozen=True, slots=True)
class NewRow:
    """A record as its row has it."""

    key: str
    tenant_key: str
    memory: Memory
    current: str
    """The memory's current version, as `encode_history` writes a history of it alone."""
    older: str
    """The other versions, as `encode_history` writes them. "": none, and none were dropped."""
    vector: Floats
    words: tuple[str, ...]

    @property
    def is_live(self) -> bool:
        return self.memory.state is MemoryState.LIVE

    @property
    def bytes(self) -> int:
        return len(self.current.encode()) + len(self.older.encode())


@dataclass(slots=True)
class Changes:
    """What a committed batch changes in memory and in the indexes of words."""

    blocks: dict[int, BlockChange] = field(default_factory=dict)
    removed: int = 0
    """Rows that were taken out, also those that no search found."""
    removed_of: set[str] = field(default_factory=set)
    """Their tenants' keys."""
    words_removed: dict[str, list[str]] = field(default_factory=dict)
    """Keys, by tenant key."""
    words_added: dict[str, list[WordRow]] = field(default_factory=dict)
    """By tenant key."""

    def block(self, block: int) -> BlockChange:
        return self.blocks.setdefault(block, BlockChange())

    @property
    def tenants(self) -> list[str]:
        return sorted({*self.words_removed, *self.words_added})


def new_rows(records: Sequence[Record], dim: int) -> list[NewRow]:
    """The rows of a batch; of two records of one key the later one. Raises ValueError for a wrong vector."""
    rows: dict[str, NewRow] = {}
    for record in records:
        vector = record.vector
        if vector is None or vector.shape != (dim,) or not np.isfinite(vector).all():
            raise ValueError(f"a record is put with a vector of {dim} finite numbers")
        memory = record.memory
        rows.pop(record.key, None)
        rows[record.key] = NewRow(
            record.key,
            record.tenant_key,
            memory,
            *encode_parts(record.history),
            np.ascontiguousarray(vector, np.float32),
            tuple(memory_words(memory)),
        )
    return list(rows.values())


def encode_parts(history: MemoryHistory) -> tuple[str, str]:
    """The current version, and the older ones. `decode_parts` reads them."""
    current = encode_history(MemoryHistory(history.versions[-1:]))
    older = MemoryHistory(history.versions[:-1], history.dropped)
    return current, encode_history(older) if older.versions or older.dropped else ""


def decode_parts(current: str, older: str) -> MemoryHistory:
    """Reads what `encode_parts` wrote."""
    last = decode_history(current)
    if not older:
        return last
    before = decode_history(older)
    return MemoryHistory((*before.versions, *last.versions), before.dropped)


def word_row(row: NewRow, seq: int) -> WordRow:
    memory = row.memory
    return WordRow(
        row.key, seq, row.tenant_key, memory.namespace, str(memory.kind), memory.created_s, row.words
    )


def write_batch(
    connection: sqlite3.Connection,
    rows: Sequence[NewRow],
    deleted: Sequence[str],
    first_seq: int,
    deadline: Deadline,
) -> Changes:
    """Put rows in place of those with the same keys, and delete keys, in one transaction.

    first_seq: the numbers from here on are free.
    Raises OSError; then nothing is changed.
    """
    changes = Changes()
    with bounded(connection, deadline):
        connection.execute("BEGIN IMMEDIATE")
        try:
            gone = [*deleted, *(row.key for row in rows)]
            for key in gone:
                _take_out(connection, key, changes)
            blocks: dict[tuple[str, str], int] = {}
            for seq, row in enumerate(rows, first_seq):
                owner = row.tenant_key, row.memory.namespace
                if owner not in blocks:
                    blocks[owner] = _block(connection, *owner)
                _bring_in(connection, row, seq, blocks[owner], changes)
            connection.executemany(
                "INSERT OR IGNORE INTO unworded VALUES (?, ?)",
                [(tenant[0], key) for tenant in changes.tenants for key in _changed_keys(changes, tenant)],
            )
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    return changes


def _changed_keys(changes: Changes, tenant: str) -> Iterator[str]:
    yield from changes.words_removed.get(tenant, ())
    yield from (row.key for row in changes.words_added.get(tenant, ()))


def _block(connection: sqlite3.Connection, tenant_key: str, namespace: str) -> int:
    found = connection.execute(
        "SELECT block FROM blocks WHERE tenant_key = ? AND namespace = ?", (tenant_key, namespace)
    ).fetchone()
    if found:
        return int(found[0])
    added = connection.execute(
        "INSERT INTO blocks (tenant_key, namespace, records, live, words, bytes) VALUES (?, ?, 0, 0, 0, 0)",
        (tenant_key, namespace),
    ).lastrowid
    assert added is not None
    return added


def _take_out(connection: sqlite3.Connection, key: str, changes: Changes) -> None:
    found = connection.execute(
        "SELECT seq, block, state, records.words, records.bytes, tenant_key FROM records"
        " JOIN blocks USING (block) WHERE key = ?",
        (key,),
    ).fetchone()
    if found is None:
        return
    seq, block, state, words, size_bytes, tenant = found
    connection.execute("DELETE FROM records WHERE seq = ?", (seq,))
    connection.execute("DELETE FROM vectors WHERE place = ?", (block << SEQ_BITS | seq,))
    connection.execute("DELETE FROM links WHERE seq = ?", (seq,))
    live = state == MemoryState.LIVE
    connection.execute(
        "UPDATE blocks SET records = records - 1, live = live - ?, words = words - ?, bytes = bytes - ?"
        " WHERE block = ?",
        (live, words if live else 0, size_bytes, block),
    )
    changes.removed += 1
    changes.removed_of.add(tenant)
    if live:
        changes.block(block).killed.append(seq)
        changes.words_removed.setdefault(tenant, []).append(key)


def _bring_in(connection: sqlite3.Connection, row: NewRow, seq: int, block: int, changes: Changes) -> None:
    memory, live, size_bytes = row.memory, row.is_live, row.bytes
    connection.execute(
        "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            seq, row.key, block, memory.memory_id, str(memory.state), str(memory.kind), memory.created_s,
            memory.updated_s, memory.place.within, memory.place.position, len(row.words), size_bytes,
            row.current, row.older,
        ),
    )  # fmt: skip
    connection.execute(
        "INSERT INTO vectors VALUES (?, ?, ?, ?, ?)",
        (block << SEQ_BITS | seq, live, str(memory.kind), memory.created_s, row.vector.tobytes()),
    )
    links = {
        (block, link.memory_id, link.namespace or memory.namespace, str(link.kind), seq)
        for link in memory.links
        if link.kind is not LinkKind.UNKNOWN
    }
    connection.executemany("INSERT INTO links VALUES (?, ?, ?, ?, ?)", links)
    connection.execute(
        "UPDATE blocks SET records = records + 1, live = live + ?, words = words + ?, bytes = bytes + ?"
        " WHERE block = ?",
        (live, len(row.words) if live else 0, size_bytes, block),
    )
    if live:
        changes.block(block).added.append(VectorRow(seq, str(memory.kind), memory.created_s, row.vector))
        changes.words_added.setdefault(row.tenant_key, []).append(word_row(row, seq))
