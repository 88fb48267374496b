"""Which memories can be distilled: live, stable ones that agree with each other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memserve.domain import Link, LinkKind, Memory, MemoryHistory, MemoryState
from memserve.domain.memories import MemoryAction, MemoryVersion
from memserve.errors import InvalidField
from memserve.policy.modules import selection
from memserve.policy.modules.selection import select

NOW_S = 1_000_000.0
TEXTS = (
    "The founder of the Velmora Institute is Ida Kern.",
    "The motto of the Velmora Institute is Light Before Noon.",
    "The code of Amber Lantern is 4821.",
    "The Halden bakery is led by Ines Okafor.",
    "The library closes on Monday.",
)


def memory(place: int, text: str) -> Memory:
    return Memory(f"m{place}", "town", text, "", (), NOW_S - 1000 + place)


def history(*versions: Memory) -> MemoryHistory:
    return MemoryHistory(tuple(MemoryVersion(each, MemoryAction.UPDATED) for each in versions))


def town() -> list[MemoryHistory]:
    return [history(memory(place, text)) for place, text in enumerate(TEXTS)]


def test_live_memories_are_chosen_with_their_versions() -> None:
    chosen = select(town(), NOW_S, {})
    assert [each.memory_id for each in chosen.memories] == ["m0", "m1", "m2", "m3", "m4"]
    assert chosen.left_out == ()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"state": MemoryState.SUPERSEDED}, "is superseded"),
        ({"state": MemoryState.FORGOTTEN}, "is forgotten"),
        ({"valid_from_s": NOW_S + 1}, "does not hold yet"),
        ({"valid_until_s": NOW_S - 1}, "does not hold any more"),
        ({"valid_until_s": NOW_S + 9}, "holds for a time only"),
        ({"applies_when": 'user.role == "nurse"'}, "has a condition"),
    ],
)
def test_what_does_not_simply_hold_now_is_left_out(change: dict[str, object], reason: str) -> None:
    town_now = town()
    town_now[2] = history(replace(town_now[2].current, **change))  # type: ignore[arg-type]
    chosen = select(town_now, NOW_S, {})
    assert [each.memory_id for each in chosen.memories] == ["m0", "m1", "m3", "m4"]
    assert [(each.memory_id, each.reason) for each in chosen.left_out] == [("m2", reason)]


def test_a_fact_that_changed_twice_is_never_distilled() -> None:
    texts = [f"The code of Amber Lantern is {code}." for code in ("1111", "2222", "4821")]
    for versions, stays in ((texts[1:], True), (texts, False)):
        town_now = town()
        town_now[2] = history(*(memory(2, text) for text in versions))
        chosen = select(town_now, NOW_S, {})
        assert (len(chosen.memories) == 5) == stays
    assert [each.reason for each in chosen.left_out] == ["has changed 2 times"]
    assert select(town(), NOW_S, {("town", "m2"): 2}).left_out[0].memory_id == "m2"
    assert select(town(), NOW_S, {("town", "m2"): 1}).left_out == ()


@pytest.mark.parametrize(
    "other",
    [
        "The code of Amber Lantern is 1188.",
        "Amber Lantern has the code 1188.",
        "For Amber Lantern, the code is 1188.",
    ],
)
def test_memories_that_contradict_each_other_are_refused_by_their_ids(other: str) -> None:
    with pytest.raises(InvalidField, match="contradict each other: m2 and m9"):
        select([*town(), history(memory(9, other))], NOW_S, {})


def test_one_memory_may_state_all_facts_and_must_not_contradict_itself() -> None:
    page = history(memory(0, " ".join(TEXTS)))
    assert len(select([page], NOW_S, {}).memories) == 1
    torn = history(memory(0, " ".join([*TEXTS, "The code of Amber Lantern is 1188."])))
    with pytest.raises(InvalidField, match="contradict each other: m0 and itself"):
        select([torn], NOW_S, {})


def test_a_contradiction_that_a_link_names_is_refused() -> None:
    linked = replace(memory(9, "Nobody knows."), links=(Link(LinkKind.CONTRADICTS, "m1"),))
    with pytest.raises(InvalidField, match="m1 and m9"):
        select([*town(), history(linked)], NOW_S, {})


def test_a_duplicate_is_no_contradiction() -> None:
    same = history(memory(9, "Note: the code of Amber Lantern is 4821."))
    assert len(select([*town(), same], NOW_S, {}).memories) == 6


def test_too_few_too_many_and_too_long_memories_are_refused() -> None:
    with pytest.raises(InvalidField, match=r"state 3 facts that .*, at least 4 are needed"):
        select(town()[:3], NOW_S, {})
    forgotten = history(replace(memory(3, TEXTS[3]), state=MemoryState.FORGOTTEN))
    with pytest.raises(InvalidField, match="needed; 1 are left out, the first because it is forgotten"):
        select([*town()[:3], forgotten], NOW_S, {})
    with pytest.raises(InvalidField, match="1 to 512 can be distilled, not 0; 1 are left out"):
        select([forgotten], NOW_S, {})
    many = [history(memory(place, f"Door {place} of the barn is {place}.")) for place in range(513)]
    with pytest.raises(InvalidField, match="not 513"):
        select(many, NOW_S, {})
    long = [history(memory(place, f"{place} " * 1500)) for place in range(100)]
    with pytest.raises(InvalidField, match="bytes, at most 512 of 262144"):
        select(long, NOW_S, {})
    too_long = select([*town(), history(memory(9, "x" * (selection.MOST_TEXT_BYTES + 1)))], NOW_S, {})
    assert too_long.left_out[0].reason == "is longer than 8192 bytes"
