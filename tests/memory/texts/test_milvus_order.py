"""The orders that Milvus does not know."""

from __future__ import annotations

import random

from memserve.memory.texts.milvus_order import SortKey, WordRanking, best_of_each


def test_equal_values_are_in_the_order_of_names_also_in_a_descending_list() -> None:
    draw = random.Random(3)
    for descending in (False, True):
        keys = [
            SortKey(draw.randint(0, 3), draw.choice("ab"), f"m{number}", descending) for number in range(50)
        ]
        by_name = sorted(keys, key=lambda key: (key.namespace, key.memory_id))
        assert sorted(keys) == sorted(by_name, key=lambda key: key.value, reverse=descending)


def test_a_rare_word_counts_more_than_many_common_ones() -> None:
    ranking = WordRanking(["a", "b", "rare"], {"a": 900, "b": 900, "rare": 1}, 1000)
    best, mean_length = ranking.best({"common": ["a", "b"], "rare": ["rare", "x"]}, 2)
    assert best == ["rare", "common"]
    assert mean_length == 2.0


def test_a_short_text_counts_more_than_a_long_one_with_the_same_word() -> None:
    ranking = WordRanking(["a"], {"a": 2}, 10)
    assert ranking.best({"long": ["a", *"bcdefgh"], "short": ["a"]}, 1)[0] == ["short"]


def test_a_word_that_more_memories_have_than_there_are_does_no_harm() -> None:
    """Memories may be written between two counts."""
    best, _ = WordRanking(["a"], {"a": 12}, 10).best({"one": ["a"]}, 1)
    assert best == ["one"]
    assert WordRanking(["a"], {"a": 0}, 0).best({}, 3) == ([], 0.0)


def test_the_best_of_each_list_come_before_the_second_of_any() -> None:
    lists = [["a1", "a2", "a3"], ["b1"], ["a1", "c2"]]
    assert best_of_each(lists, {"a2"}, 10) == ["a1", "b1", "c2", "a3"]
    assert best_of_each(lists, set(), 2) == ["a1", "b1"]
    assert best_of_each([], set(), 2) == []
