"""Which memories become one: duplicates, and facts about one thing; and which never do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memserve.domain import Link, LinkKind, Memory, MemoryKind, MergeKind, Place
from memserve.policy.consolidation import (
    MOST_SUMMARY_CHARS,
    MOST_WRITES,
    missing_values,
    plan,
    questions,
    says_the_same,
    without,
)


def memory(number: int, text: str, **fields: object) -> Memory:
    made = Memory(f"m{number:03}", "n", text, "", (), float(number), updated_s=float(number))
    return replace(made, **fields)  # type: ignore[arg-type]


def merged(*texts: str, summaries: bool = False) -> list[set[str]]:
    """The ids of the memories that become one."""
    memories = [memory(number, text) for number, text in enumerate(texts)]
    return [
        {source.memory_id for source in merge.sources} | ({merge.memory_id} if merge.version else set())
        for merge in plan("n", memories, summaries=summaries).merges
    ]


def test_memories_that_say_the_same_become_the_first_of_them() -> None:
    memories = [
        memory(0, "The code of the gate is 4071."),
        memory(1, "The gate's code is 4071."),
        memory(2, "the CODE of the gate is 4071"),
        memory(3, "The code of the mill is 4071."),
    ]
    [merge] = plan("n", memories, summaries=False).merges
    assert (merge.kind, merge.memory_id, merge.version) == (MergeKind.DUPLICATES, "m000", 1)
    assert [source.memory_id for source in merge.sources] == ["m001", "m002"]


def test_a_fact_in_another_form_of_a_statement_is_the_same_memory() -> None:
    forms = (
        "Records say that the code of Amber Lantern is 4071.",
        "Amber Lantern: code 4071.",
        "As of today the code of Amber Lantern is 4071.",
    )
    assert merged(*forms) == [{"m000", "m001", "m002"}]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("The code of the gate is 4071.", "The code of the gate is 4072."),
        ("The code of the gate is 4071.", "The code of the mill is 4071."),
        ("Anna owes Ben 20 euros.", "Ben owes Anna 20 euros."),
        ("The gate is open on Monday.", "The gate is not open on Monday."),
        ("Ida likes tea.", "Ida likes coffee."),
        ("Records say that the code of the gate is 4071.", "Records say that the code of the gate is 4072."),
        ("The code of the gate is 4071.", "The colour of the gate is 4071."),
        ("The code of the gate is a1B2.", "The code of the gate is A1b2."),
        ("The password is hunter2, mind the case.", "The password is Hunter2, mind the case."),
        ("Open valve A. Close valve B.", "Close valve B. Open valve A."),
    ],
)
def test_near_misses_do_not_become_one(first: str, second: str) -> None:
    assert merged(first, second) == []


SAME = "The code of the gate is 4071."


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": MemoryKind.EPISODE},
        {"kind": MemoryKind.PROCEDURE},
        {"applies_when": "city == 'Oslo'"},
        {"valid_until_s": 99.0},
        {"metadata": {"city": "Oslo"}},
        {"place": Place("document", 3)},
        {"pinned": True},
    ],
)
def test_equal_words_do_not_become_one_where_something_else_differs(fields: dict[str, object]) -> None:
    assert plan("n", [memory(0, SAME), memory(1, SAME, **fields)]).merges == ()


@pytest.mark.parametrize(("first", "second"), [(1, True), (1, 1.0), (1, "1")])
def test_metadata_that_only_looks_equal_keeps_memories_apart(first: object, second: object) -> None:
    marked = [memory(number, SAME, metadata={"n": value}) for number, value in enumerate((first, second))]
    assert plan("n", marked).merges == ()
    facts = [
        memory(number, FACTS[number], metadata={"n": first if number else second}) for number in range(3)
    ]
    assert plan("n", facts).merges == ()


def test_what_contradicts_another_memory_is_left_alone_and_told() -> None:
    memories = [memory(0, SAME), memory(1, SAME), memory(2, "The code of the gate is 4072.")]
    planned = plan("n", memories)
    assert planned.merges == ()
    assert {each.memory_id for each in planned.left_alone} == {"m000", "m001", "m002"}
    assert all("contradicts" in each.reason for each in planned.left_alone)
    forms = ("Amber Lantern: code 1.", "Note: the code of Amber Lantern is 1.", "Amber Lantern: code 2.")
    several = [memory(number, text) for number, text in enumerate(forms)]
    assert len(plan("n", several).left_alone) == 3
    linked = memory(1, "A rule.", links=(Link(LinkKind.CONTRADICTS, "m000"),))
    assert len(plan("n", [memory(0, "Some text."), linked]).left_alone) == 2


FACTS = (
    "The founder of Velmora is Ida Kern.",
    "The motto of Velmora is Light Before Noon.",
    "Velmora's colour is blue.",
    "The phone of Velmora is 4411.",
)


def test_facts_about_one_thing_become_a_summary_that_has_each_value() -> None:
    memories = [
        memory(number, text) for number, text in enumerate((*FACTS, "The colour of Velmora is blue."))
    ]
    memories.append(memory(9, "The mill burned down in 1931."))
    planned = plan("n", memories)
    [merge] = planned.merges
    assert (merge.kind, merge.version, len(merge.sources)) == (MergeKind.SUMMARY, 0, 5)
    assert missing_values(merge.text, memories[:5]) == []
    assert merge.text.count("blue") == 1
    assert planned.fewer == 4
    assert plan("n", memories).merges == planned.merges


def test_two_facts_or_facts_of_other_validity_are_no_summary() -> None:
    assert plan("n", [memory(number, text) for number, text in enumerate(FACTS[:2])]).merges == ()
    apart = [memory(number, text, valid_from_s=float(number)) for number, text in enumerate(FACTS)]
    assert plan("n", apart).merges == ()
    assert (
        plan("n", [memory(number, text) for number, text in enumerate(FACTS)], summaries=False).merges == ()
    )


def test_many_facts_become_several_summaries_of_bounded_size() -> None:
    words = ("founder", "owner", "motto", "colour", "phone", "cook", "flag", "anthem", "mascot", "size")
    memories = [
        memory(number, f"The {word} of Velmora is Value{number} {'x' * 80}{number}.")
        for number, word in enumerate(words)
    ]
    planned = plan("n", memories)
    assert len(planned.merges) > 1
    assert all(len(merge.text) <= MOST_SUMMARY_CHARS for merge in planned.merges)


def test_a_plan_has_no_more_writes_than_one_step_takes() -> None:
    memories = [
        memory(number, f"The code of gate {number // 2} is {4000 + number // 2}.") for number in range(200)
    ]
    planned = plan("n", memories, summaries=False)
    writes = sum(1 + len(merge.sources) for merge in planned.merges)
    assert MOST_WRITES - 2 < writes <= MOST_WRITES


def test_a_summary_of_a_model_that_lacks_or_invents_a_value_is_none() -> None:
    sources = [memory(number, text) for number, text in enumerate(FACTS[:2])]
    assert says_the_same("The founder of Velmora is Ida Kern. Its motto is Light Before Noon.", sources)
    assert not says_the_same("The founder of Velmora is Ida Kern.", sources)
    invented = (
        "The founder of Velmora is Ida Kern. Its motto is Light Before Noon. The owner of Velmora is Bo."
    )
    assert not says_the_same(invented, sources)
    assert not says_the_same("", sources)


def test_each_merge_is_asked_about_before_one_is_asked_twice() -> None:
    texts = (*FACTS, SAME, "The gate's code is 4071.")
    memories = {each.memory_id: each for each in (memory(number, text) for number, text in enumerate(texts))}
    merges = plan("n", list(memories.values())).merges
    asked = questions(merges, memories, 3)
    assert [question.merge for question in asked] == [0, 1, 0]
    assert {"Ida Kern", "4071"} <= {question.value for question in asked}


def test_of_a_summary_that_is_dropped_the_duplicates_become_one_all_the_same() -> None:
    texts = (*FACTS, "The colour of Velmora is blue.")
    memories = {each.memory_id: each for each in (memory(number, text) for number, text in enumerate(texts))}
    left = without(plan("n", list(memories.values())), {0: "loses an answer"}, memories)
    [merge] = left.merges
    assert (merge.kind, merge.memory_id, merge.sources[0].memory_id) == (MergeKind.DUPLICATES, "m002", "m004")
    assert {each.memory_id for each in left.left_alone} == {"m000", "m001", "m002", "m003"}


def test_a_plan_without_a_merge_tells_what_is_left_alone() -> None:
    memories = [memory(0, SAME), memory(1, SAME)]
    left = without(plan("n", memories), {0: "loses an answer"}, {each.memory_id: each for each in memories})
    assert (left.merges, [(each.memory_id, each.reason) for each in left.left_alone]) == (
        (), [("m001", "loses an answer")],
    )  # fmt: skip
