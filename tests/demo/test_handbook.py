"""The handbook of the demo on a real model: the self-study reads it, and its questions are new to that."""

from __future__ import annotations

import pytest

from memserve.demo import handbook
from memserve.policy.modules.selection import LEAST_FACTS
from memserve.policy.modules.self_study import wording
from memserve.policy.modules.self_study.readings import Form, readings_of

FACTS = handbook.handbook()


def test_every_sentence_states_one_fact_that_can_be_asked_for() -> None:
    assert len(FACTS) >= LEAST_FACTS
    keys = set()
    for fact in FACTS:
        [reading] = readings_of(fact.text)
        assert reading.form is Form.ATTRIBUTE
        assert fact.value in reading.value
        keys.add(reading.key)
    assert len(keys) == len(FACTS)


def test_the_page_as_one_memory_states_the_same_facts() -> None:
    page = handbook.HANDBOOK.read_text(encoding="utf-8")
    assert len(readings_of(page)) == len(FACTS)


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.value)
def test_no_question_is_of_the_self_study(fact: handbook.Fact) -> None:
    [reading] = readings_of(fact.text)
    studied = [*wording.questions(reading), *wording.questions(reading, held_out=True)]
    assert fact.question not in studied
    assert not fact.is_right(fact.question)
    assert fact.is_right(fact.text.upper())


def test_the_long_text_ends_with_the_handbook() -> None:
    text = handbook.long_text(20)
    assert text.count("In night ") == 20
    assert text.endswith("\n".join(fact.text for fact in FACTS))
