"""Vectors in memory: exact in their order over many rows, bounded, and whole while they are loaded."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from memserve.domain import MemoryKind
from memserve.memory.texts.local.vectors import (
    CHUNK_ROWS,
    SCORE_ERROR,
    BlockChange,
    VectorBlock,
    VectorBlocks,
    VectorRow,
)
from tests.memory.texts.store_records import CREATED_S, DIM, Vector, scope_of, unit, vector_of

ROWS = 2 * CHUNK_ROWS + 1000
ALL = scope_of("tenant")


def rows_of(vectors: Vector, first: int = 1) -> list[VectorRow]:
    kinds = (str(MemoryKind.FACT), str(MemoryKind.PASSAGE))
    return [
        VectorRow(first + place, kinds[place % 2], CREATED_S + place, vector)
        for place, vector in enumerate(vectors)
    ]


def block_of(vectors: Vector) -> VectorBlock:
    block = VectorBlock(DIM)
    block.add(rows_of(vectors))
    return block


@pytest.fixture(scope="module")
def many() -> Vector:
    """[ROWS, DIM] of unit length."""
    vectors = np.random.default_rng(7).standard_normal((ROWS, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("narrowed", ["", "kind", "time", "both"])
def test_candidates_have_the_exact_best_within_the_error(many: Vector, narrowed: str) -> None:
    block = block_of(many)
    killed = list(range(1, ROWS, 7))
    block.kill(killed)
    wanted = np.ones(ROWS, bool)
    wanted[np.array(killed) - 1] = False
    fields: dict[str, object] = {}
    if narrowed in ("kind", "both"):
        fields["kinds"] = frozenset({MemoryKind.PASSAGE})
        wanted &= np.arange(ROWS) % 2 == 1
    if narrowed in ("time", "both"):
        fields |= {"created_from_s": CREATED_S + 100, "created_until_s": CREATED_S + ROWS - 200}
        wanted[:100] = wanted[ROWS - 200 :] = False
    for number in range(5):
        query = vector_of(number)
        exact = np.where(wanted, many @ query, -2.0)
        found = block.scan(scope_of("tenant", **fields), query, 40)
        assert len(found) == 40
        assert all(abs(exact[hit.seq - 1] - hit.score) <= SCORE_ERROR for hit in found)
        best = set((np.argsort(-exact)[:10] + 1).tolist())
        assert best <= {hit.seq for hit in found}


def test_the_order_of_equal_sizes_is_not_lost_to_half_precision() -> None:
    """The error's bound holds for vectors that half precision rounds as badly as it can."""
    rng = np.random.default_rng(3)
    vectors = np.stack([unit(rng.choice([-1, 1], DIM) * (1 + 2.0**-11)) for _ in range(CHUNK_ROWS + 10)])
    block = block_of(vectors.astype(np.float32))
    query = unit(np.ones(DIM))
    exact = vectors @ query
    assert all(abs(exact[hit.seq - 1] - hit.score) <= SCORE_ERROR for hit in block.scan(ALL, query, 1024))


def test_a_block_of_nothing_finds_nothing() -> None:
    assert VectorBlock(DIM).scan(ALL, vector_of(1), 5) == []
    block = block_of(np.stack([vector_of(1)]))
    block.kill([1, 1, 99])
    assert block.scan(ALL, vector_of(1), 5) == []
    assert block.dead == 1


def test_the_least_recently_used_block_leaves_when_they_are_too_many(many: Vector) -> None:
    block_bytes = block_of(many[:5000]).memory_bytes
    blocks = VectorBlocks(int(block_bytes * 2.5))
    loads: list[int] = []

    def search(number: int) -> None:
        def load() -> VectorBlock:
            loads.append(number)
            return block_of(many[:5000])

        assert blocks.block(number, load, 1.0).count == 5000
        assert blocks.memory_bytes <= block_bytes * 2.5

    for number in (1, 2, 1, 3, 1, 2):
        search(number)
    assert loads == [1, 2, 3, 2]
    large = VectorBlocks(1)
    assert large.block(1, lambda: block_of(many[:10]), 1.0) is large.block(1, pytest.fail, 1.0)


def test_what_is_committed_while_a_block_is_loaded_is_in_it() -> None:
    blocks = VectorBlocks(1 << 30)

    def load() -> VectorBlock:
        read = block_of(np.stack([vector_of(1), vector_of(2)]))
        late = BlockChange(rows_of(np.stack([vector_of(2), vector_of(3)]), first=2), [1])
        blocks.apply({5: late, 6: BlockChange(killed=[1])})
        return read

    block = blocks.block(5, load, 1.0)
    assert sorted(hit.seq for hit in block.scan(ALL, vector_of(3), 9)) == [2, 3]


def test_a_block_that_is_dropped_while_it_is_loaded_is_read_again() -> None:
    blocks = VectorBlocks(1 << 30)

    def load() -> VectorBlock:
        blocks.drop([5])
        return block_of(np.stack([vector_of(1)]))

    first = blocks.block(5, load, 1.0)
    assert blocks.block(5, lambda: VectorBlock(DIM), 1.0) is not first


def test_one_caller_loads_and_others_wait_no_longer_than_they_may() -> None:
    blocks = VectorBlocks(1 << 30)
    begun, may_end = threading.Event(), threading.Event()

    def load() -> VectorBlock:
        begun.set()
        assert may_end.wait(10)
        return VectorBlock(DIM)

    loader = threading.Thread(target=blocks.block, args=(5, load, 1.0))
    loader.start()
    assert begun.wait(10)
    with pytest.raises(TimeoutError):
        blocks.block(5, pytest.fail, 0.05)
    may_end.set()
    loader.join()
    assert blocks.block(5, pytest.fail, 1.0).count == 0
