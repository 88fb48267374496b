"""Which module makes room."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from memserve.policy.modules.residency import leaves_first

DIGESTS = st.lists(st.sampled_from("abcdefgh"), unique=True)


def test_the_least_recently_used_leaves_first() -> None:
    assert leaves_first(["old", "newer", "newest"], pinned=(), in_use=()) == "old"


def test_pinned_and_used_modules_stay_however_old_they_are() -> None:
    assert leaves_first(["pinned", "used", "idle", "newest"], pinned={"pinned"}, in_use={"used"}) == "idle"


def test_nothing_leaves_when_all_are_needed() -> None:
    assert leaves_first(["pinned", "used"], pinned={"pinned"}, in_use={"used", "another"}) is None


@given(DIGESTS, DIGESTS, DIGESTS)
def test_who_leaves_is_held_and_unneeded_and_nobody_older_is(
    held: list[str], pinned: list[str], in_use: list[str]
) -> None:
    leaver = leaves_first(held, pinned=pinned, in_use=in_use)
    older = held if leaver is None else held[: held.index(leaver)]
    assert leaver not in pinned and leaver not in in_use
    assert all(digest in pinned or digest in in_use for digest in older)
