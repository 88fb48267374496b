"""Which memories can be distilled: live, stable ones that agree with each other."""

from __future__ import annotations

import time
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
    with pytest.raises(InvalidField, match="contradict each other: two sentences of m0;"):
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


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("The founder of Tarn is Ida Kern.", "Tarn was founded by Bo Lind."),
        ("The mill is managed by Ida Kern.", "The mill's manager is Bo Lind."),
        ("THE CODE OF TARN IS 4711.", "The code of Tarn is 4712."),
        ("The code of Zoé is 4711.", "Zoe\u0301's code is 4712."),
        ("The frost of Tarn is -5 °C.", "The frost of Tarn is 5 °C."),
        ("The head of Tarn is Dr. Ida Kern.", "The head of Tarn is Dr. Bo Lind."),
        ("Der Koch von Tarn ist Ida.", "Der Koch von Tarn ist Bo."),
    ],
)
def test_the_same_fact_with_another_value_is_refused_in_any_spelling(first: str, second: str) -> None:
    other = replace(memory(9, second), namespace="inn")
    with pytest.raises(InvalidField, match="contradict each other: town/m8 and inn/m9"):
        select([*town(), history(memory(8, first)), history(other)], NOW_S, {})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("The length of Tarn is 1,000 m.", "Tarn's length is 1000 m."),
        ("The founder of Tarn is Ida Kern.", "Tarn was founded by ida kern."),
        ("The author of C is Ida.", "The author of C++ is Bo."),
        ("The design of Tarn is blue.", "The designer of Tarn is Bo Lind."),
        ("The captain of team A is Ida.", "The captain of team B is Bo."),
        ("The head of Tarn is Dr. Ida Kern.", 'The head of Tarn is "Dr. Ida Kern".'),
        ("The code of gate 1 is 4711.", "The code of gate 2 is 4711."),
    ],
)
def test_another_thing_or_another_spelling_is_no_contradiction(first: str, second: str) -> None:
    assert (
        len(select([*town(), history(memory(8, first)), history(memory(9, second))], NOW_S, {}).memories) == 7
    )


def test_hundreds_of_memories_of_one_form_are_compared_in_seconds() -> None:
    many = [
        memory(place, f"The door code of gate {place} by the sea is {4000 + place}.") for place in range(512)
    ]
    begun_s = time.process_time()
    assert list(selection.contradictions(many)) == []
    assert time.process_time() - begun_s < 15


def test_more_facts_than_can_be_laid_out_are_refused() -> None:
    pages = [
        history(memory(page, " ".join(f"The code of gate {page}x{n} is {n}." for n in range(60))))
        for page in range(40)
    ]
    with pytest.raises(InvalidField, match="state 2400 facts, at most 2048"):
        select(pages, NOW_S, {})


def test_what_spells_a_control_token_of_the_model_is_left_out() -> None:
    chosen = select(
        [*town(), history(memory(9, "The cook of <|end|> is Bo."))],
        NOW_S,
        {},
        lambda text: "<|end|>" if "<|end|>" in text else None,
    )
    assert [(each.memory_id, each.reason) for each in chosen.left_out] == [
        ("m9", "spells the model's control token '<|end|>'")
    ]


def test_how_often_a_memory_was_superseded_is_its_own() -> None:
    """Two namespaces may have memories with one id."""
    other = history(replace(memory(2, "The cook of Tarn is Bo."), namespace="inn"))
    chosen = select([*town(), other], NOW_S, {("inn", "m2"): 2})
    assert [(each.namespace, each.memory_id) for each in chosen.left_out] == [("inn", "m2")]
