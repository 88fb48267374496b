"""The index never claims what a worker may not hold."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from memserve.kv.index import Applied, BlockEvent, BlockIndex, BlocksCleared, BlocksRemoved, BlocksStored

A, B, C, D = (bytes([i]) * 32 for i in range(4))


def test_the_prefix_ends_at_the_first_block_that_is_not_held() -> None:
    index = BlockIndex()
    index.apply("w", 0, [BlocksStored((A, B, D))])
    assert index.longest_prefix("w", [A, B, C, D]) == 2
    assert index.longest_prefix("w", [C, A]) == 0
    assert index.longest_prefix("w", []) == 0


def test_workers_are_kept_apart_and_an_unknown_one_holds_nothing() -> None:
    index = BlockIndex()
    index.apply("w", 0, [BlocksStored((A,))])
    assert index.longest_prefix("v", [A]) == 0
    index.forget("w")
    assert index.longest_prefix("w", [A]) == 0
    index.forget("never seen")


def test_a_block_removed_from_the_device_may_still_be_in_host_memory() -> None:
    index = BlockIndex()
    index.apply("w", 0, [BlocksStored((A, B)), BlocksStored((A,), "CPU"), BlocksRemoved((A, B))])
    assert index.longest_prefix("w", [A, B]) == 1
    assert index.longest_prefix("w", [A, B], medium="GPU") == 0
    assert index.longest_prefix("w", [A, B], medium="CPU") == 1
    assert index.held_blocks("w") == 1


def test_a_repeated_batch_changes_nothing() -> None:
    index = BlockIndex()
    index.apply("w", 0, [BlocksStored((A,))])
    index.apply("w", 1, [BlocksRemoved((A,))])
    assert index.apply("w", 0, [BlocksStored((A,))]) is Applied.ALREADY_SEEN
    assert index.longest_prefix("w", [A]) == 0


def test_after_a_gap_only_what_came_later_is_believed() -> None:
    index = BlockIndex()
    index.apply("w", 0, [BlocksStored((A,))])
    assert index.apply("w", 2, [BlocksStored((B,))]) is Applied.AFTER_GAP
    assert index.longest_prefix("w", [A]) == 0
    assert index.longest_prefix("w", [B]) == 1
    assert index.apply("w", 3, [BlocksStored((A,))]) is Applied.IN_ORDER


def test_a_stream_that_is_joined_late_begins_with_a_gap() -> None:
    assert BlockIndex().apply("w", 7, []) is Applied.AFTER_GAP


def test_clearing_forgets_every_block() -> None:
    index = BlockIndex()
    index.apply("w", 0, [BlocksStored((A,)), BlocksStored((B,), "CPU"), BlocksCleared(), BlocksStored((C,))])
    assert index.held_blocks("w") == 1


keys = st.lists(st.sampled_from([A, B, C, D]), max_size=4).map(tuple)
events: st.SearchStrategy[BlockEvent] = st.one_of(keys.map(BlocksStored), keys.map(BlocksRemoved), st.just(BlocksCleared()))


@given(batches=st.lists(st.lists(events, max_size=4), max_size=12), lost=st.sets(st.integers(0, 11)))
def test_whatever_batches_are_lost_no_block_is_claimed_that_is_not_held(batches: list[list[BlockEvent]], lost: set[int]) -> None:
    complete, lossy = BlockIndex(), BlockIndex()
    for sequence, batch in enumerate(batches):
        complete.apply("w", sequence, batch)
        if sequence not in lost:
            lossy.apply("w", sequence, batch)
            for key in (A, B, C, D):
                assert lossy.longest_prefix("w", [key]) <= complete.longest_prefix("w", [key])
