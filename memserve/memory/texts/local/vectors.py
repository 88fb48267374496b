"""Vectors in memory, in blocks of one namespace each, loaded when they are first asked for.

1. A block has frozen chunks of vectors in half precision, and a tail of new ones in full precision. faiss
   scans them with the caller's thread alone: numpy's product waits for threads on other cores.
2. A scan gives candidates. The caller scores them again with the exact vectors of the rows. A candidate's
   score is wrong by at most `SCORE_ERROR`, so the caller knows when it has all of the nearest.
3. Any thread may search. One thread at a time changes blocks. A search sees the block as it was at one
   moment: a change replaces what a search may be reading, or writes behind what it reads.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import faiss
import numpy as np
import numpy.typing as npt

from memserve.memory.texts.store import Scope

SCORE_ERROR = 5.2e-4
"""Of a cosine of half-precision values: 2**-11 of the sum of the products' sizes, which is at most 1."""
CHUNK_ROWS = 16_384
TAIL_ROWS = 1024
"""A full tail joins the last chunk, in a chunk that takes its place."""
_FIRST_TAIL_ROWS = 64
_KINDS_MAX = 256

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class VectorRow:
    """A live row's vector, and what a scope can ask of it."""

    seq: int
    kind: str
    created_s: float
    vector: Floats
    """[dim]"""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A row that a scan found."""

    seq: int
    score: float
    """Its cosine, give or take `SCORE_ERROR`."""


class _Rows:
    """What is known of rows beside their vectors. [capacity] arrays in the order of numbers."""

    def __init__(self, capacity: int) -> None:
        self.seqs = np.zeros(capacity, np.int64)
        self.kinds = np.zeros(capacity, np.uint8)
        self.created_s = np.zeros(capacity, np.float64)
        self.alive = np.zeros(capacity, np.bool_)

    def copy_from(self, other: _Rows, at: int, count: int) -> None:
        for mine, theirs in zip(self.arrays(), other.arrays(), strict=True):
            mine[at : at + count] = theirs[:count]

    def arrays(self) -> tuple[npt.NDArray[np.generic], ...]:
        return self.seqs, self.kinds, self.created_s, self.alive

    def kill(self, seq: int, count: int) -> bool:
        """Returns whether the row was there and alive."""
        at = int(np.searchsorted(self.seqs[:count], seq))
        if at == count or self.seqs[at] != seq or not self.alive[at]:
            return False
        self.alive[at] = False
        return True

    def matching(self, count: int, wanted: _Wanted) -> npt.NDArray[np.bool_]:
        """[count]"""
        mask: npt.NDArray[np.bool_] = self.alive[:count].copy()
        if wanted.kinds is not None:
            mask &= np.isin(self.kinds[:count], wanted.kinds)
        if wanted.created_from_s is not None:
            mask &= self.created_s[:count] >= wanted.created_from_s
        if wanted.created_until_s is not None:
            mask &= self.created_s[:count] < wanted.created_until_s
        return mask


@dataclass(frozen=True, slots=True)
class NewVectors:
    """Rows in the order of their numbers, as arrays of [rows]."""

    seqs: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.uint8]
    created_s: npt.NDArray[np.float64]
    vectors: Floats
    """[rows, dim]"""

    def part(self, first: int, end: int | None) -> NewVectors:
        return NewVectors(
            self.seqs[first:end], self.kinds[first:end], self.created_s[first:end], self.vectors[first:end]
        )


@dataclass(frozen=True, slots=True)
class _Wanted:
    kinds: Sequence[int] | None
    created_from_s: float | None
    created_until_s: float | None


class _Chunk:
    """At most `CHUNK_ROWS` rows in half precision. Only `alive` changes."""

    def __init__(self, before: _Chunk | None, tail: _Tail) -> None:
        """The rows of `before` and then those of the tail."""
        count, dim = tail.count, tail.vectors.shape[1]
        start = 0 if before is None else before.count
        self.count: int = start + count
        self.rows = _Rows(self.count)
        if before is None:
            self._index: faiss.Index = faiss.IndexScalarQuantizer(
                dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
            )
        else:
            self.rows.copy_from(before.rows, 0, start)
            self._index = faiss.clone_index(before._index)
        self.rows.copy_from(tail.rows, start, count)
        self._index.add(tail.vectors[:count])

    def scan(self, query: Floats, limit: int, wanted: _Wanted) -> tuple[Floats, npt.NDArray[np.int64]]:
        """Scores and numbers of the best rows."""
        mask = self.rows.matching(self.count, wanted)
        # faiss' own threads would take the cores from the other calls.
        faiss.omp_set_num_threads(1)
        parameters = None
        if not mask.all():
            bits = np.packbits(mask, bitorder="little")
            selector = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
            parameters = faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]
        scores, places = self._index.search(query[None], min(limit, self.count), params=parameters)
        good = places[0] >= 0
        return scores[0][good], self.rows.seqs[places[0][good]]

    @property
    def memory_bytes(self) -> int:
        return self._index.ntotal * self._index.d * 2 + _bytes_of(self.rows)


class _Tail:
    """The newest rows. Rows are written behind `count`, which a search reads once."""

    def __init__(self, dim: int, capacity: int) -> None:
        self.count = 0
        self.rows = _Rows(capacity)
        self.vectors: Floats = np.zeros((capacity, dim), np.float32)

    @property
    def room(self) -> int:
        return len(self.vectors) - self.count

    def write(self, new: NewVectors) -> None:
        """Rows for which there is room."""
        at, after = self.count, self.count + len(new.seqs)
        self.vectors[at:after] = new.vectors
        self.rows.seqs[at:after] = new.seqs
        self.rows.kinds[at:after] = new.kinds
        self.rows.created_s[at:after] = new.created_s
        self.rows.alive[at:after] = True
        self.count = after

    def grown(self) -> _Tail:
        capacity, dim = self.vectors.shape
        larger = _Tail(dim, min(TAIL_ROWS, capacity * 4))
        larger.rows.copy_from(self.rows, 0, self.count)
        larger.vectors[: self.count] = self.vectors[: self.count]
        larger.count = self.count
        return larger

    def scan(self, query: Floats, limit: int, wanted: _Wanted) -> tuple[Floats, npt.NDArray[np.int64]]:
        count = self.count
        (places,) = np.nonzero(self.rows.matching(count, wanted))
        if not len(places):
            return np.zeros(0, np.float32), np.zeros(0, np.int64)
        chosen = self.vectors[:count] if len(places) == count else self.vectors[places]
        faiss.omp_set_num_threads(1)
        scores, best = faiss.knn(
            query[None], chosen, min(limit, len(places)), metric=faiss.METRIC_INNER_PRODUCT
        )
        return scores[0], self.rows.seqs[places[best[0]]]

    @property
    def memory_bytes(self) -> int:
        return self.vectors.nbytes + _bytes_of(self.rows)


class VectorBlock:
    """The live vectors of one namespace of one tenant."""

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self._kinds: dict[str, int] = {}
        # Replaced as one, so that a search has parts that belong together.
        self._parts: tuple[tuple[_Chunk, ...], _Tail] = ((), _Tail(dim, _FIRST_TAIL_ROWS))
        self.count = 0
        """Rows, also those that are dead."""
        self.dead = 0
        self.last_seq = 0

    def add(self, rows: Sequence[VectorRow]) -> None:
        """Rows with ascending numbers. One thread at a time."""
        if rows:
            self.add_arrays(
                [row.seq for row in rows],
                [row.kind for row in rows],
                [row.created_s for row in rows],
                np.stack([row.vector for row in rows]),
            )

    def add_arrays(
        self, seqs: Sequence[int], kinds: Sequence[str], created_s: Sequence[float], vectors: Floats
    ) -> None:
        """As `add`. vectors: [rows, dim]"""
        new = NewVectors(
            np.array(seqs, np.int64),
            np.array([self._kind(kind) for kind in kinds], np.uint8),
            np.array(created_s, np.float64),
            vectors,
        )
        while len(new.seqs):
            tail = self._tail_with_room()
            taken = min(tail.room, len(new.seqs))
            tail.write(new.part(0, taken))
            self.count += taken
            new = new.part(taken, None)
        self.last_seq = int(seqs[-1])

    def _tail_with_room(self) -> _Tail:
        chunks, tail = self._parts
        if not tail.room:
            if tail.count < TAIL_ROWS:
                tail = tail.grown()
            else:
                last = chunks[-1] if chunks and chunks[-1].count < CHUNK_ROWS else None
                kept = chunks[:-1] if last else chunks
                chunks, tail = (*kept, _Chunk(last, tail)), _Tail(self._dim, TAIL_ROWS)
            self._parts = chunks, tail
        return tail

    def kill(self, seqs: Iterable[int]) -> None:
        """Find these rows no more. Others are passed over. One thread at a time."""
        chunks, tail = self._parts
        for seq in seqs:
            if tail.rows.kill(seq, tail.count) or any(chunk.rows.kill(seq, chunk.count) for chunk in chunks):
                self.dead += 1

    def scan(self, scope: Scope, query: Floats, limit: int) -> list[Candidate]:
        """The best candidates, best first. query: [dim] of unit length."""
        kinds = None
        if scope.kinds is not None:
            kinds = [number for kind, number in list(self._kinds.items()) if kind in scope.kinds]
        wanted = _Wanted(kinds, scope.created_from_s, scope.created_until_s)
        chunks, tail = self._parts
        parts: tuple[_Chunk | _Tail, ...] = (*chunks, tail)
        scored = [part.scan(query, limit, wanted) for part in parts]
        scores = np.concatenate([scores for scores, _ in scored])
        seqs = np.concatenate([seqs for _, seqs in scored])
        best = np.argsort(-scores, kind="stable")[:limit]
        return [Candidate(int(seqs[at]), float(scores[at])) for at in best]

    @property
    def is_worn(self) -> bool:
        """Whether most of what a search reads is dead."""
        return self.dead > 1024 and self.dead * 2 > self.count

    @property
    def memory_bytes(self) -> int:
        chunks, tail = self._parts
        return tail.memory_bytes + sum(chunk.memory_bytes for chunk in chunks)

    def _kind(self, kind: str) -> int:
        number = self._kinds.setdefault(kind, len(self._kinds))
        if number >= _KINDS_MAX:
            raise ValueError(f"more than {_KINDS_MAX} kinds of memories")
        return number


@dataclass(slots=True)
class BlockChange:
    """What a committed batch changes in one block."""

    added: list[VectorRow] = field(default_factory=list)
    killed: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Loading:
    ended: threading.Event = field(default_factory=threading.Event)
    changes: list[BlockChange] = field(default_factory=list)
    """Committed while the block is being read."""
    is_void: bool = False
    """The block was dropped meanwhile."""


class VectorBlocks:
    """The blocks that are in memory, the least recently used of which leaves when they are too many."""

    def __init__(self, memory_bytes: int) -> None:
        """memory_bytes: of all blocks. The block that is searched stays, also when it has more."""
        self._limit_bytes = memory_bytes
        self._lock = threading.Lock()
        self._loaded: OrderedDict[int, VectorBlock] = OrderedDict()
        self._loading: dict[int, _Loading] = {}

    def block(self, block: int, load: Callable[[], VectorBlock], wait_s: float) -> VectorBlock:
        """The block. load: reads it, with all that was committed before it began. Raises TimeoutError."""
        while True:
            with self._lock:
                if block in self._loaded:
                    self._loaded.move_to_end(block)
                    return self._loaded[block]
                under_way = self._loading.get(block)
                if under_way is None:
                    mine = self._loading[block] = _Loading()
                    break
            if not under_way.ended.wait(wait_s):
                raise TimeoutError("the vectors of a namespace are still being loaded")
        try:
            read = load()
            with self._lock:
                for change in mine.changes:
                    _apply(read, change)
                if not mine.is_void:
                    self._loaded[block] = read
                    self._make_room(block)
            return read
        finally:
            with self._lock:
                if self._loading.get(block) is mine:
                    del self._loading[block]
            mine.ended.set()

    def apply(self, changes: dict[int, BlockChange]) -> None:
        """Bring committed changes into the blocks. One thread at a time."""
        with self._lock:
            for block, change in changes.items():
                if under_way := self._loading.get(block):
                    under_way.changes.append(change)
                if present := self._loaded.get(block):
                    _apply(present, change)
                    if present.is_worn:
                        del self._loaded[block]
            if changes:
                self._make_room(None)

    def drop(self, blocks: Iterable[int] | None = None) -> None:
        """Have blocks read again when they are next searched. blocks: None for all."""
        with self._lock:
            for block in list(self._loaded) if blocks is None else blocks:
                self._loaded.pop(block, None)
            for block in list(self._loading) if blocks is None else blocks:
                if under_way := self._loading.pop(block, None):
                    under_way.is_void = True

    @property
    def memory_bytes(self) -> int:
        with self._lock:
            return sum(block.memory_bytes for block in self._loaded.values())

    def _make_room(self, kept: int | None) -> None:
        held = sum(block.memory_bytes for block in self._loaded.values())
        for block in list(self._loaded):
            if held <= self._limit_bytes or len(self._loaded) == 1:
                return
            if block != kept:
                held -= self._loaded.pop(block).memory_bytes


def _apply(block: VectorBlock, change: BlockChange) -> None:
    # A block that was read after the commit has the rows already.
    block.add([row for row in change.added if row.seq > block.last_seq])
    block.kill(change.killed)


def _bytes_of(rows: _Rows) -> int:
    return sum(array.nbytes for array in rows.arrays())
