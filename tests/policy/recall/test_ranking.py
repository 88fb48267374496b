"""Ranking by word, and the fusion of both halves of a search."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memserve.domain import Memory, ScoredMemory
from memserve.policy.recall.ranking import fuse, query_words, rank_by_words


def ids(hits: list[ScoredMemory]) -> list[str]:
    return [hit.memory.memory_id for hit in hits]


def note(name: str, text: str) -> Memory:
    return Memory(name, "n", text, "", (), 0.0)


def test_a_new_memory_with_the_rare_word_beats_old_ones_with_three_common_words() -> None:
    common = [note(f"m{number:02d}", f"power key signal {number}") for number in range(32)]
    fresh = note("fresh", "the gate opens with qx7741b")
    rows = rank_by_words(["qx7741b", "power", "key", "signal"], common, [[fresh], common, common, common], 32)
    assert rows[0][0] == fresh
    assert len(rows) == 32


def test_what_holds_no_word_of_the_query_is_not_a_hit_by_word() -> None:
    assert rank_by_words(["gate"], [note("m1", "lunch")], [[]], 32) == []
    assert rank_by_words(["gate"], [], [[]], 32) == []


def test_the_longest_words_of_a_query_are_kept_and_function_words_are_not() -> None:
    assert query_words("Where is THE gate, gate of foo_barbaz?") == [
        "foobarbaz",
        "barbaz",
        "gate",
        "foo",
    ]
    assert len(query_words(" ".join(f"word{number}" for number in range(20)))) == 8
    assert query_words("where is the ?!") == []


def scored(name: str, score: float) -> tuple[Memory, float]:
    return Memory(name, "n", name, "", (), 0.0), score


def test_a_memory_that_both_halves_find_beats_one_that_either_finds_first() -> None:
    hits = fuse([scored("a", 0.9), scored("b", 0.8)], [scored("c", 9.0), scored("b", 8.0)], 10)
    assert ids(hits) == ["b", "a", "c"]
    assert hits[0].score == pytest.approx(2 / 62)
    assert (hits[1].dense_score, hits[1].bm25_score) == (0.9, None)
    assert (hits[2].dense_score, hits[2].bm25_score) == (None, 9.0)


def test_fusion_returns_a_memory_once_though_a_half_returns_it_twice() -> None:
    assert ids(fuse([scored("a", 0.9), scored("a", 0.9), scored("b", 0.5)], [], 10)) == ["a", "b"]


@given(
    st.lists(st.sampled_from([0.1, 0.5, 0.9]), min_size=1, max_size=12),
    st.integers(1, 12),
    st.randoms(use_true_random=False),
)
def test_the_order_of_hits_does_not_depend_on_the_order_in_which_milvus_returns_equals(
    scores: list[float], limit: int, shuffler: random.Random
) -> None:
    rows = [scored(f"m{number:02d}", score) for number, score in enumerate(scores)]
    shuffled = rows.copy()
    shuffler.shuffle(shuffled)
    assert fuse(shuffled, shuffled, limit) == fuse(rows, rows, limit)
    assert len(fuse(rows, rows, limit)) == min(limit, len(rows))
