"""The index says what a worker holds, as far as it was told."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from memserve.kv.index import SHARDS, BlockIndex

A, B, C, D = (bytes([i]) * 32 for i in range(4))
KEYS = [bytes([i, j]) * 16 for i in range(3) for j in range(3)]


def test_the_prefix_ends_at_the_first_block_that_is_not_held() -> None:
    index = BlockIndex()
    index.add("w", [A, B, D])
    assert index.longest_prefix("w", [A, B, C, D]) == 2
    assert index.longest_prefix("w", [A, B]) == 2
    assert index.longest_prefix("w", [C, A]) == 0
    assert index.longest_prefix("w", []) == 0


def test_one_walk_finds_what_every_worker_holds() -> None:
    index = BlockIndex()
    index.add("all", [A, B, C])
    index.add("half", [A, B])
    index.add("end", [B, C])
    index.add("none", [D])
    assert index.leading([A, B, C]) == {"all": 3, "half": 2}
    assert index.leading([A]) == {"all": 1, "half": 1}
    assert index.leading([]) == {}


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
    assert index.held_blocks("w") == 1


def test_a_forgotten_worker_holds_nothing() -> None:
    index = BlockIndex()
    index.add("w", [A])
    index.forget("w")
    index.forget("never seen")
    assert index.longest_prefix("w", [A]) == 0
    assert index.held_blocks("w") == 0


def test_tidying_frees_the_entries_and_the_places_of_workers_that_are_gone() -> None:
    index = BlockIndex()
    for number in range(1000):
        index.add(f"w{number}", [A, B])
        index.forget(f"w{number}")
        steps = 0
        while index.tidy():
            steps += 1
        assert steps < SHARDS
    assert not any(index._shards)
    index.add("last", [A])
    assert index._bits["last"] == 1


@given(st.lists(st.sampled_from(KEYS), unique=True), st.lists(st.sampled_from(KEYS), unique=True))
def test_a_worker_that_comes_while_another_is_tidied_away_inherits_nothing(
    old: list[bytes], new: list[bytes]
) -> None:
    index = BlockIndex()
    index.add("old", old)
    index.forget("old")
    index.tidy()
    index.add("new", new)
    while index.tidy():
        pass
    index.add("next", [])
    assert all(index.longest_prefix("new", [key]) == (key in new) for key in KEYS)
    assert not any(index.longest_prefix("next", [key]) for key in KEYS)


class AgainstSets(RuleBasedStateMachine):
    """The index against one set for each worker."""

    def __init__(self) -> None:
        super().__init__()
        self.index = BlockIndex()
        self.held: dict[str, set[bytes]] = {}

    workers = st.sampled_from("abcd")
    keys = st.lists(st.sampled_from(KEYS))

    @rule(worker=workers, keys=keys)
    def add(self, worker: str, keys: list[bytes]) -> None:
        self.index.add(worker, keys)
        self.held.setdefault(worker, set()).update(keys)

    @rule(worker=workers, keys=keys)
    def remove(self, worker: str, keys: list[bytes]) -> None:
        self.index.remove(worker, keys)
        self.held.get(worker, set()).difference_update(keys)

    @rule(worker=workers, keys=keys)
    def reset(self, worker: str, keys: list[bytes]) -> None:
        self.index.reset(worker, keys)
        self.held[worker] = set(keys)

    @rule(worker=workers)
    def forget(self, worker: str) -> None:
        self.index.forget(worker)
        self.held.pop(worker, None)

    @rule(steps=st.integers(1, 2 * SHARDS))
    def tidy(self, steps: int) -> None:
        for _ in range(steps):
            self.index.tidy()

    @invariant()
    def tells_what_it_was_told(self) -> None:
        for start in range(0, len(KEYS), 2):
            keys = KEYS[start:]
            leading = {}
            for worker, held in self.held.items():
                blocks = next((n for n, key in enumerate(keys) if key not in held), len(keys))
                if blocks:
                    leading[worker] = blocks
            assert self.index.leading(keys) == leading
        for worker in "abcd":
            assert self.index.held_blocks(worker) == len(self.held.get(worker, ()))


TestAgainstSets = AgainstSets.TestCase
