"""What is read from the rows of the local index. Any thread may call; each call borrows a connection."""

from __future__ import annotations

import contextlib
import heapq
import queue
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from memserve.domain import LinkKind, Memory
from memserve.memory.texts.local.schema import SEQ_BITS, Deadline, bounded, connect
from memserve.memory.texts.local.vectors import Floats, VectorBlock
from memserve.memory.texts.local.writing import decode_parts
from memserve.memory.texts.records import Record, decode_history
from memserve.memory.texts.store import DenseHit, ListOrder, Scope

CONNECTIONS_KEPT = 16
"""Connections that wait for the next call. More calls at once open more, and close them."""
_ROWS_AT_ONCE = 2048
_VARIABLES_MAX = 500
_ORDER_COLUMNS: Mapping[ListOrder, tuple[str, ...]] = {
    ListOrder.CREATED: ("created_s",),
    ListOrder.UPDATED: ("updated_s",),
    ListOrder.MEMORY_ID: ("memory_id",),
    ListOrder.PLACE: ("within", "position"),
}
_SEQ_MASK = (1 << SEQ_BITS) - 1
_FOUND = "records.seq, records.key, blocks.tenant_key, records.memory, records.older"
_WITH_VECTOR = f"JOIN vectors ON vectors.place = (records.block << {SEQ_BITS}) | records.seq"


@dataclass(frozen=True, slots=True)
class BlockCounts:
    """What a namespace of a tenant has."""

    records: int
    """Also superseded and forgotten ones."""
    live: int
    words: int
    """Of the live ones."""
    bytes: int
    """Of all records' histories."""


def place_of(block: int, seq: int) -> int:
    """Where a row's vector is."""
    return block << SEQ_BITS | seq


class RowReader:
    """Reads the rows. Every method takes until its deadline. Raises OSError, and TimeoutError when late."""

    def __init__(self, folder: Path, dim: int) -> None:
        self._folder = folder
        self._dim = dim
        self._kept: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue(CONNECTIONS_KEPT)
        self._closed = False

    def close(self) -> None:
        """Calls under way end on their connections, which they then close."""
        self._closed = True
        with contextlib.suppress(queue.Empty):
            while True:
                self._kept.get_nowait().close()

    def get_many(self, keys: Sequence[str], *, with_vectors: bool, deadline: Deadline) -> dict[str, Record]:
        columns = _FOUND + (", vectors.vector" if with_vectors else "")
        joined = _WITH_VECTOR if with_vectors else ""
        found = {}
        with self.borrowed(deadline) as connection:
            for part in _parts(list(dict.fromkeys(keys))):
                rows = connection.execute(
                    f"SELECT {columns} FROM records JOIN blocks USING (block) {joined}"
                    f" WHERE records.key IN ({_marks(part)})",
                    part,
                )
                for row in rows:
                    found[row[1]] = _record(row, self._vector(row[5]) if with_vectors else None)
        return found

    def nearest(
        self, scope: Scope, places: Sequence[int], query: Floats, limit: int, *, deadline: Deadline
    ) -> list[DenseHit]:
        """The nearest of some rows by their exact vectors, best first. Rows that are gone are left out.

        places: as `place_of` numbers them. query: [dim] of unit length.
        """
        with self.borrowed(deadline) as connection:
            exact: list[tuple[float, int]] = []
            for part in _parts(list(places)):
                rows = connection.execute(
                    f"SELECT place, vector FROM vectors WHERE place IN ({_marks(part)}) AND live", part
                ).fetchall()
                if rows:
                    scores = np.stack([self._vector(row[1]) for row in rows]) @ query
                    exact += [(float(score), row[0]) for score, row in zip(scores, rows, strict=True)]
            exact.sort(key=lambda entry: (-entry[0], entry[1]))
            best = {place & _SEQ_MASK: score for score, place in exact[:limit]}
            found = self._live(connection, scope, list(best))
        return [DenseHit(*found[seq], score) for seq, score in best.items() if seq in found]

    def live(self, scope: Scope, seqs: Sequence[int], *, deadline: Deadline) -> list[tuple[str, Memory]]:
        """Keys and memories of rows by their numbers, in this order. Rows that are gone are left out."""
        with self.borrowed(deadline) as connection:
            found = self._live(connection, scope, seqs)
        return [found[seq] for seq in seqs if seq in found]

    def _live(
        self, connection: sqlite3.Connection, scope: Scope, seqs: Sequence[int]
    ) -> dict[int, tuple[str, Memory]]:
        found = {}
        for part in _parts(list(seqs)):
            rows = connection.execute(
                f"SELECT seq, key, memory FROM records JOIN blocks USING (block)"
                f" WHERE seq IN ({_marks(part)}) AND state = 'live'"
                f" AND tenant_key = ? AND namespace IN ({_marks(scope.namespaces)})",
                (*part, scope.tenant_key, *scope.namespaces),
            )
            found.update({row[0]: (row[1], decode_history(row[2]).current) for row in rows})
        return found

    def page(
        self,
        scope: Scope,
        order: ListOrder,
        limit: int,
        *,
        descending: bool,
        after: tuple[object, str, str] | None,
        deadline: Deadline,
    ) -> list[Record]:
        """The next records in this order, from all namespaces of the scope."""
        columns = _ORDER_COLUMNS[order]
        with self.borrowed(deadline) as connection:
            runs = [
                _run(connection, block, namespace, scope, columns, descending, after)
                for namespace, block in _blocks(connection, scope).items()
            ]
            merged = heapq.merge(*runs, key=lambda entry: entry[0])
            seqs = [seq for _, (_, seq) in zip(range(limit), merged, strict=False)]
            records = self._by_seq(connection, seqs)
        return [records[seq] for seq in seqs]

    def _by_seq(self, connection: sqlite3.Connection, seqs: Sequence[int]) -> dict[int, Record]:
        found = {}
        for part in _parts(list(seqs)):
            rows = connection.execute(
                f"SELECT {_FOUND} FROM records JOIN blocks USING (block)"
                f" WHERE records.seq IN ({_marks(part)})",
                part,
            )
            found.update({row[0]: _record(row, None) for row in rows})
        return found

    def at_places(
        self, scope: Scope, within: str, first: int, last: int, *, deadline: Deadline
    ) -> list[Memory]:
        """In the order of positions, then of namespaces and ids."""
        condition, values = _narrowed(scope)
        memories = []
        with self.borrowed(deadline) as connection:
            for block in _blocks(connection, scope).values():
                rows = connection.execute(
                    "SELECT memory FROM records WHERE block = ? AND within = ?"
                    f" AND position BETWEEN ? AND ? {condition}",
                    (block, within, first, last, *values),
                )
                memories += [decode_history(row[0]).current for row in rows]
        return sorted(
            memories, key=lambda memory: (memory.place.position, memory.namespace, memory.memory_id)
        )

    def linking_to(
        self,
        scope: Scope,
        target: tuple[str, str],
        kinds: frozenset[LinkKind],
        limit: int,
        *,
        deadline: Deadline,
    ) -> list[Memory]:
        """In the order of namespaces and ids. target: namespace and id."""
        namespace, memory_id = target
        condition, values = _narrowed(scope)
        names = [str(kind) for kind in sorted(kinds)]
        memories: list[Memory] = []
        with self.borrowed(deadline) as connection:
            for _, block in sorted(_blocks(connection, scope).items()):
                rows = connection.execute(
                    "SELECT memory FROM records WHERE seq IN (SELECT seq FROM links WHERE block = ?"
                    f" AND target_id = ? AND target_namespace = ? AND kind IN ({_marks(names)}))"
                    f" {condition} ORDER BY memory_id LIMIT ?",
                    (block, memory_id, namespace, *names, *values, limit - len(memories)),
                )
                memories += [decode_history(row[0]).current for row in rows]
        return memories

    def counts(self, deadline: Deadline, tenant_key: str | None = None) -> dict[tuple[str, str], BlockCounts]:
        """By tenant key and namespace. tenant_key: None for all."""
        chosen = "" if tenant_key is None else "WHERE tenant_key = ?"
        with self.borrowed(deadline) as connection:
            rows = connection.execute(
                f"SELECT tenant_key, namespace, records, live, words, bytes FROM blocks {chosen}",
                () if tenant_key is None else (tenant_key,),
            ).fetchall()
        return {(row[0], row[1]): BlockCounts(*row[2:]) for row in rows if row[2]}

    def blocks(self, scope: Scope, deadline: Deadline) -> dict[str, int]:
        """The numbers of the scope's blocks, by namespace. Namespaces without a record have none."""
        with self.borrowed(deadline) as connection:
            return _blocks(connection, scope)

    def load_block(self, block: int, deadline: Deadline) -> VectorBlock:
        """Reads all live vectors of a namespace."""
        loaded = VectorBlock(self._dim)
        with self.borrowed(deadline) as connection:
            rows = connection.execute(
                "SELECT place, kind, created_s, vector FROM vectors WHERE place >= ? AND place < ? AND live",
                (block << SEQ_BITS, block + 1 << SEQ_BITS),
            )
            while part := rows.fetchmany(_ROWS_AT_ONCE):
                deadline.check()
                places, kinds, created_s, vectors = zip(*part, strict=True)
                loaded.add_arrays(
                    [place & _SEQ_MASK for place in places],
                    kinds,
                    created_s,
                    np.frombuffer(b"".join(vectors), np.float32).reshape(len(part), self._dim),
                )
        return loaded

    def scan(
        self, after: int, limit: int, *, with_vectors: bool, deadline: Deadline
    ) -> list[tuple[int, Record]]:
        """All tenants' records in the order of their numbers, with them. after: a number, 0 at first."""
        columns = _FOUND + (", vectors.vector" if with_vectors else "")
        joined = _WITH_VECTOR if with_vectors else ""
        with self.borrowed(deadline) as connection:
            rows = connection.execute(
                f"SELECT {columns} FROM records JOIN blocks USING (block) {joined}"
                " WHERE records.seq > ? ORDER BY records.seq LIMIT ?",
                (after, limit),
            )
            return [(row[0], _record(row, self._vector(row[5]) if with_vectors else None)) for row in rows]

    @contextlib.contextmanager
    def borrowed(self, deadline: Deadline) -> Iterator[sqlite3.Connection]:
        """A connection that sees one state of the rows until it is given back."""
        if self._closed:
            raise OSError("the local index is closed")
        try:
            connection = self._kept.get_nowait()
        except queue.Empty:
            connection = connect(self._folder, read_only=True)
        usable = False
        try:
            with bounded(connection, deadline):
                connection.execute("BEGIN")
                try:
                    yield connection
                finally:
                    connection.execute("COMMIT")
            usable = not self._closed
        finally:
            if usable:
                try:
                    self._kept.put_nowait(connection)
                except queue.Full:
                    connection.close()
            else:
                connection.close()

    def _vector(self, blob: bytes) -> Floats:
        return np.frombuffer(blob, np.float32, self._dim)


def _run(
    connection: sqlite3.Connection,
    block: int,
    namespace: str,
    scope: Scope,
    columns: tuple[str, ...],
    descending: bool,
    after: tuple[object, str, str] | None,
) -> Iterator[tuple[Any, int]]:
    """A namespace's rows behind `after`, as (what they are ordered by, number)."""
    condition, values = _narrowed(scope)
    row = f"({', '.join(columns)})" if len(columns) > 1 else columns[0]
    if after is not None:
        value, last_namespace, last_id = after
        # A value of a place comes back from JSON as a list.
        bound = list(value) if isinstance(value, list | tuple) else [value]
        here = f"({_marks(bound)})" if len(columns) > 1 else "?"
        beyond = "<" if descending else ">"
        if namespace == last_namespace:
            condition += f" AND {row} {beyond}= {here} AND ({row} {beyond} {here} OR memory_id > ?)"
            values = [*values, *bound, *bound, last_id]
        else:
            # Equal memories are in the order of namespaces, whichever way the list goes.
            condition += f" AND {row} {beyond}{'=' if namespace > last_namespace else ''} {here}"
            values = [*values, *bound]
    down = " DESC" if descending else ""
    ordered = ", ".join(f"{column}{down}" for column in columns)
    rows = connection.execute(
        f"SELECT seq, memory_id, {', '.join(columns)} FROM records WHERE block = ? {condition}"
        f" ORDER BY {ordered}, memory_id",
        (block, *values),
    )
    key: Callable[[tuple[Any, ...]], Any] = _Reversed if descending else tuple
    return (((key(found[2:]), namespace, found[1]), found[0]) for found in rows)


class _Reversed:
    """A value that sorts the other way round."""

    __slots__ = ("value",)

    def __init__(self, value: tuple[Any, ...]) -> None:
        self.value = tuple(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Reversed) and self.value == other.value

    def __lt__(self, other: _Reversed) -> bool:
        return other.value < self.value


def _blocks(connection: sqlite3.Connection, scope: Scope) -> dict[str, int]:
    rows = connection.execute(
        f"SELECT namespace, block FROM blocks WHERE tenant_key = ? AND namespace IN"
        f" ({_marks(scope.namespaces)}) AND records > 0",
        (scope.tenant_key, *scope.namespaces),
    )
    return dict(rows.fetchall())


def _narrowed(scope: Scope) -> tuple[str, list[Any]]:
    """The conditions on a row of one of the scope's namespaces, and their values."""
    states = [str(state) for state in sorted(scope.states)]
    condition, values = f" AND state IN ({_marks(states)})", list[Any](states)
    if scope.kinds is not None:
        kinds = [str(kind) for kind in sorted(scope.kinds)]
        condition, values = f"{condition} AND kind IN ({_marks(kinds)})", [*values, *kinds]
    for bound, sign in ((scope.created_from_s, ">="), (scope.created_until_s, "<")):
        if bound is not None:
            condition, values = f"{condition} AND created_s {sign} ?", [*values, bound]
    return condition, values


def _record(row: Sequence[Any], vector: Floats | None) -> Record:
    return Record(row[1], row[2], decode_parts(row[3], row[4]), vector)


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))


def _parts(values: list[Any]) -> Iterator[list[Any]]:
    for first in range(0, len(values), _VARIABLES_MAX):
        yield values[first : first + _VARIABLES_MAX]
