"""The index says what a worker holds, as far as it was told."""

from __future__ import annotations

from memserve.kv.index import BlockIndex

A, B, C, D = (bytes([i]) * 32 for i in range(4))


def test_the_prefix_ends_at_the_first_block_that_is_not_held() -> None:
    index = BlockIndex()
    index.add("w", [A, B, D])
    assert index.longest_prefix("w", [A, B, C, D]) == 2
    assert index.longest_prefix("w", [A, B]) == 2
    assert index.longest_prefix("w", [C, A]) == 0
    assert index.longest_prefix("w", []) == 0


def test_workers_are_kept_apart_and_an_unknown_one_holds_nothing() -> None:
    index = BlockIndex()
    index.add("w", [A])
    index.remove("v", [A])
    assert index.longest_prefix("v", [A]) == 0
    assert index.longest_prefix("w", [A]) == 1


def test_a_removed_block_ends_the_prefix_before_it() -> None:
    index = BlockIndex()
    index.add("w", [A, B, C])
    index.remove("w", [B, D])
    assert index.longest_prefix("w", [A, B, C]) == 1
    assert index.held_blocks("w") == 2


def test_a_reset_replaces_everything_known_of_the_worker() -> None:
    index = BlockIndex()
    index.add("w", [A, B])
    index.reset("w", [B])
    assert index.longest_prefix("w", [A]) == 0
    assert index.longest_prefix("w", [B]) == 1


def test_a_forgotten_worker_holds_nothing() -> None:
    index = BlockIndex()
    index.add("w", [A])
    index.forget("w")
    index.forget("never seen")
    assert index.longest_prefix("w", [A]) == 0
    assert index.held_blocks("w") == 0
