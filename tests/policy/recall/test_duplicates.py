"""Duplicates, contradictions and updates: what the rules see in two memories, and what they leave alone."""

from __future__ import annotations

import time
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memserve.domain.memories import FindingKind, Memory, MemoryKind, MemoryState
from memserve.policy.recall.duplicates import Candidate, RelationRules, findings_of, word_overlap

DAY_S = 86_400.0
OLD = Memory("old", "n", "The code is 4071.", "", (), 0.0)
NEW = replace(OLD, memory_id="new", text="The code is 4072.")


def said(old: str, new: str, rules: RelationRules | None = None) -> FindingKind | None:
    return said_of(replace(OLD, text=old), replace(NEW, text=new), rules)


def said_of(old: Memory, new: Memory, rules: RelationRules | None = None) -> FindingKind | None:
    findings = findings_of(new, [Candidate(old, 0.9, 0.9)], rules or RelationRules())
    assert len(findings) <= 1
    return findings[0].kind if findings else None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("The code is 4071.", "  the CODE is 4071 !"),
        ("Straße gesperrt", "STRASSE GESPERRT"),
        ("ｆｕｌｌ ｗｉｄｔｈ", "full width"),
        ("The code of the gate is 4071.", "The gate's code is 4071."),
        ("The code of the north gate is 4071.", "The north gate's code is 4071."),
        ("Anna's teacher is Ben.", "The teacher of Anna is Ben."),
        ("4071 is the code of the gate.", "The code of the gate is 4071."),
        ("a flight from Paris to Rome", "a flight to Rome from Paris"),
        ("The shop opens at nine.", "The shop opens at 9."),
        ("In Rom wohnt Anna.", "Anna wohnt in Rom."),
        ("北门的密码是4071。", "4071是北门的密码。"),
        ("田中さんは東京に住んでいます。", "東京に田中さんは住んでいる。"),
        ("تسكن ليلى في بيروت.", "تسكن ليلى الآن في بيروت."),
        ("The meeting is on May 3, 2027.", "The meeting is on 3 May 2027."),
    ],
)
def test_the_same_said_otherwise_is_a_duplicate(old: str, new: str) -> None:
    assert said(old, new) is FindingKind.DUPLICATE
    assert said(new, old) is FindingKind.DUPLICATE


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("The code is 4071.", "The code is 4072."),
        ("The temperature is -5.", "The temperature is 5."),
        ("My name is Ada.", "My name is Eve."),
        ("The lease ends on 12 June 2027.", "The lease ends on 13 June 2027."),
        ("The train leaves at 9:30.", "The train leaves at 10:30."),
        ("Der Vertrag endet am 12. Juni.", "Der Vertrag endet am 1. März."),
        ("北门的密码是4071。", "北门的密码是4072。"),
        ("北門の暗証番号は4071です。", "北門の暗証番号は9930です。"),
        ("رمز البوابة هو ٤٠٧١", "رمز البوابة هو ٤٠٧٢"),
        ("Код ворот 4071", "Код ворот 4072"),
        ("게이트 코드는 4071입니다", "게이트 코드는 4072입니다"),
        ("गेट का कोड 4071 है", "गेट का कोड 4072 है"),
        ("I'm 30.", "I am 31."),
        ("We use PostgreSQL 14.", "We use PostgreSQL 15."),
        ("The API limit is 100 requests per minute.", "The API limit is 200 requests per minute."),
        ("Le magasin n'est pas ouvert.", "Le magasin est ouvert."),
        ("Always lock the door.", "Never lock the door."),
        ("The gate is open.", "The gate isn't open."),
        ("Anna likes tea.", "Anna does not like tea."),
        ("Ключ в шкафу", "Ключ не в шкафу"),
        ("小明住在北京。", "小明不住在北京。"),
        ("田中さんは東京に住んでいます。", "田中さんは東京に住んでいません。"),
    ],
)
def test_another_value_or_the_opposite_is_a_contradiction(old: str, new: str) -> None:
    assert said(old, new) is FindingKind.CONTRADICTION
    assert said(new, old) is FindingKind.CONTRADICTION


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("The code of the north gate is 4071.", "The code of the south gate is 4071."),
        ("The code of gate 1 is 4071.", "The code of gate 2 is 4071."),
        ("The code of gate 1 is 4071.", "The code of gate 2 is 4072."),
        ("The lamp in room 5 is red.", "The lamp in room 6 is red."),
        ("Anna's bike is red.", "Ben's bike is red."),
        ("4071 is the code of the north gate.", "4071 is the code of the south gate."),
        ("Anna lives in Rome.", "Anna works in Rome."),
        ("Anna pays Ben.", "Ben pays Anna."),
        ("Anna is Ben's teacher.", "The teacher of Anna is Ben."),
        ("Anna is taller than Ben.", "Ben is taller than Anna."),
        ("a flight from Paris to Rome", "a flight from Rome to Paris"),
        ("a flight to Rome", "a flight from Rome"),
        ("从北京到上海", "从上海到北京"),
        ("東京から来た", "東京まで来た"),
        ("Anna was the head.", "Anna is the head."),
        ("Anna likes tea.", "Anna likes coffee."),
        ("The meeting is on Tuesday.", "The meeting is in the library."),
        ("The meeting is on Tuesday.", "The meeting is on Tuesday at noon."),
        ("The code is 4071.", "The code is not 4072."),
        ("use C++", "use C"),
        ("We use PostgreSQL.", "We use MySQL."),
        ("Anna has a dog.", "Anna has a cat."),
        ("The meeting is at 10:00.", "The meeting is at 10:00 am."),
        ("The gate is open and the door is not shut.", "The gate is not open and the door is shut."),
        ("Build 1041 passed.", "Build 1042 passed."),
        ("In Rom wohnt Anna.", "In Rom wohnt Ben."),
        ("!!!", "???"),
        ("the", "a"),
    ],
)
def test_what_can_both_hold_is_no_finding(old: str, new: str) -> None:
    assert said(old, new) is None
    assert said(new, old) is None


def test_times_that_do_not_overlap_are_no_contradiction_and_no_duplicate() -> None:
    ended = replace(OLD, valid_until_s=100.0)
    begun = replace(NEW, valid_from_s=100.0)
    assert said_of(ended, begun) is None
    assert said_of(ended, replace(begun, text=OLD.text)) is None
    assert said_of(ended, replace(begun, valid_from_s=99.0)) is FindingKind.CONTRADICTION


def test_a_contradiction_that_holds_from_a_later_date_is_an_update() -> None:
    assert said_of(OLD, replace(NEW, created_s=DAY_S)) is FindingKind.UPDATE
    assert said_of(OLD, replace(NEW, created_s=DAY_S - 1)) is FindingKind.CONTRADICTION
    assert said_of(OLD, replace(NEW, valid_from_s=DAY_S)) is FindingKind.UPDATE
    assert (
        said_of(replace(OLD, valid_from_s=5 * DAY_S), replace(NEW, created_s=DAY_S))
        is FindingKind.CONTRADICTION
    )
    assert (
        said_of(OLD, replace(NEW, created_s=DAY_S), RelationRules(updates=False)) is FindingKind.CONTRADICTION
    )


def test_what_happened_may_happen_again_otherwise() -> None:
    episode = replace(OLD, kind=MemoryKind.EPISODE)
    assert said_of(episode, NEW) is None
    assert said_of(episode, replace(NEW, text=OLD.text)) is FindingKind.DUPLICATE


def test_a_memory_is_not_compared_with_itself_and_with_what_is_not_live() -> None:
    assert said_of(replace(OLD, memory_id="new"), NEW) is None
    assert said_of(replace(OLD, state=MemoryState.SUPERSEDED), NEW) is None
    assert said_of(replace(OLD, state=MemoryState.FORGOTTEN), NEW) is None
    assert said_of(replace(OLD, memory_id="new", namespace="other"), NEW) is FindingKind.CONTRADICTION


def test_every_rule_can_be_switched_off() -> None:
    assert said(OLD.text, OLD.text, RelationRules(exact_duplicates=False)) is None
    near = ("The gate's code is 4071.", "The code of the gate is 4071.")
    assert said(*near, RelationRules(near_duplicates=False)) is None
    assert said(OLD.text, NEW.text, RelationRules(contradictions=False)) is None
    assert said("The gate is open.", "The gate is not open.", RelationRules(negations=False)) is None
    switches = [
        field.name
        for field in fields(RelationRules)
        if isinstance(getattr(RelationRules(), field.name), bool)
    ]
    assert [getattr(RelationRules.off(), name) for name in switches] == [False] * 5


def test_what_is_far_by_words_and_by_meaning_is_not_compared() -> None:
    assert findings_of(NEW, [Candidate(OLD, 0.1, 0.1), Candidate(OLD, None, 0.1)]) == ()
    assert len(findings_of(NEW, [Candidate(OLD, None, 0.9)])) == 1
    assert word_overlap(OLD.text, NEW.text) == pytest.approx(4 / 5)
    assert word_overlap("", "a") == 0.0


def test_findings_are_the_surest_first_and_bounded() -> None:
    others = [replace(OLD, memory_id=f"m{number:02d}") for number in range(30)]
    same = replace(NEW, memory_id="same")
    findings = findings_of(NEW, [Candidate(memory, 0.9, 0.9) for memory in (*others, same)])
    assert len(findings) == 16
    assert (findings[0].memory_id, findings[0].kind, findings[0].score) == (
        "same",
        FindingKind.DUPLICATE,
        1.0,
    )
    assert [finding.memory_id for finding in findings[1:]] == [f"m{number:02d}" for number in range(15)]
    assert findings[1].reason == "the same subject, '4072' instead of '4071'"
    assert findings_of(NEW, [Candidate(others[0], 0.9, 0.9)], RelationRules.off()) == ()


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_two_texts_are_judged_the_same_both_ways(one: str, other: str) -> None:
    assert said(one, other) == said(other, one)


@given(
    st.lists(
        st.sampled_from(["the", "code", "gate", "is", "not", "4071", "from", "rome", "北", "の", "は"]),
        max_size=9,
    )
)
def test_a_text_is_a_duplicate_of_itself_or_says_nothing(words: list[str]) -> None:
    text = " ".join(words)
    assert said(text, text.upper()) is (FindingKind.DUPLICATE if words else None)


@pytest.mark.parametrize(
    "text", ["1:" * 4096, "a'" * 4096, "+" * 8192, "ない" * 1365, "a b " * 2048, "-1/" * 2730]
)
def test_the_longest_texts_are_judged_in_little_time(text: str) -> None:
    start_s = time.perf_counter()
    for _ in range(10):
        said(text, text[:-1])
    assert time.perf_counter() - start_s < 2
