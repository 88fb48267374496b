"""The parts of `loadtests.memory_search`: its memories, its timings, and its local index in small."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from loadtests.texts.memory_search.corpus import (
    BATCH,
    NEW_FROM,
    TENANT,
    Corpus,
    Timings,
    Writing,
    timed,
    vector_of,
)
from loadtests.texts.memory_search.halves import measure_index
from memserve.policy.recall.words import words_of


def test_a_memory_is_the_same_whoever_asks_for_it() -> None:
    one, other = Corpus(), Corpus()
    assert one.memories(1000, 20) == other.memories(1000, 20)
    assert len({new.text for _, new in one.memories(0, 500)}) == 500
    assert sum(tenant == TENANT for tenant, _ in one.memories(0, 500)) == 250
    assert {new.namespace for _, new in one.memories(0, 8)} == {"n0", "n1", "n2", "n3"}


def test_a_query_has_words_that_memories_have() -> None:
    corpus = Corpus()
    texts = " ".join(corpus.texts(number, 1)[0] for number in range(100)).split()
    for query in corpus.queries(20, 100):
        assert set(query.split()) <= set(texts)
        assert words_of(query)


def test_vectors_differ_and_are_of_unit_length() -> None:
    vectors = np.stack([vector_of(text) for text in Corpus().texts(0, 50)])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert (vectors @ vectors.T - np.eye(50)).max() < 0.5


def test_the_99th_percentile_is_among_the_slowest() -> None:
    timings = Timings(tuple(number / 1000 for number in range(100)))
    assert timings.p50_ms == pytest.approx(49.5)
    assert timings.p99_ms == pytest.approx(99.0)


def test_searches_are_timed_for_as_long_as_was_asked() -> None:
    assert len(timed(lambda _: time.sleep(0.01), 3, 10.0).seconds) == 3
    assert len(timed(lambda _: time.sleep(0.01), 1000, 0.0).seconds) == 5


def test_writes_come_in_batches_and_a_failed_one_is_raised() -> None:
    numbers: list[int] = []
    with Writing(lambda first, count: numbers.extend(range(first, first + count))) as writing:
        time.sleep(0.15)
    assert numbers[: 2 * BATCH] == list(range(NEW_FROM, NEW_FROM + 2 * BATCH))
    assert 0 < writing.writes_per_s < 2000

    def fails(first: int, count: int) -> None:
        raise OSError("full")

    with pytest.raises(OSError, match="full"), Writing(fails):
        time.sleep(0.05)


def test_the_local_index_is_measured_with_its_recall(tmp_path: Path) -> None:
    figures = measure_index(tmp_path / "index", Corpus(), 200, 5, 0.1)
    assert figures.recall == 1.0
    assert figures.rows == 200
    assert figures.disk_bytes_each > 0
    assert len(figures.both_writing.seconds) >= 5
