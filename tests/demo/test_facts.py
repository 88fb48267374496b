"""The demo's world: seeded, split, and free of torch."""

import random
import subprocess
import sys

import pytest

from memserve.demo import facts
from memserve.demo.facts import Need


def test_the_same_seed_gives_the_same_handbook_and_the_same_cases() -> None:
    assert facts.handbook(3, 500) == facts.handbook(3, 500)
    assert facts.held_out_cases(3, 20, "passage") == facts.held_out_cases(3, 20, "passage")
    assert facts.handbook(3, 500) != facts.handbook(4, 500)


def test_no_entity_belongs_to_two_worlds() -> None:
    rng = random.Random(1)
    names = {
        world: {
            facts.entity(rng, world, kind).name for kind in [*facts.ATTRIBUTES, "thing"] for _ in range(200)
        }
        for world in ("train", "held_out", "adapter")
    }
    assert not names["train"] & names["held_out"]
    assert not names["train"] & names["adapter"]
    assert not names["held_out"] & names["adapter"]


def test_every_held_out_case_is_about_an_entity_that_training_never_names() -> None:
    for need in ("passage", "distractors", "nothing"):
        for case in facts.held_out_cases(1, 50, need):
            assert facts.world_of(case.question.fact.entity.name) == "held_out"


@pytest.mark.parametrize("need", ["passage", "distractors", "nothing"])
def test_a_case_shows_the_fact_that_it_asks_for_only_when_it_says_so(need: Need) -> None:
    for case in facts.held_out_cases(2, 100, need):
        asked = case.question.fact
        shown = case.messages[0].content if case.messages[0].role == "system" else ""
        stated = any(
            asked.entity.name in line and asked.attribute in line and asked.value in line
            for line in shown.splitlines()
        )
        assert (case.expected == asked.answer) == (need == "passage")
        assert stated or need != "passage"
        assert "[1] " in shown or need == "nothing"


def test_two_facts_of_one_prompt_never_contradict_each_other() -> None:
    drawn = facts.distinct_facts(random.Random(1), "train", 300, near_share=0.8)
    assert len({fact.key for fact in drawn}) == 300


def test_a_handbook_is_as_long_as_asked_and_states_every_fact_that_it_lists() -> None:
    book = facts.handbook(5, 3000)
    assert 3000 <= facts.count_tokens(book.text) < 3050
    for fact in book.facts:
        assert any(fact.entity.name in line and fact.value in line for line in book.text.splitlines())
    with pytest.raises(ValueError, match="at least one token"):
        facts.handbook(5, 0)


def test_questions_about_a_handbook_are_spread_over_its_length() -> None:
    book = facts.handbook(5, 2000)
    asked = facts.handbook_questions(book, 1, 10)
    places = [book.facts.index(question.fact) for question in asked]
    assert places == sorted(places)
    assert places[0] < len(book.facts) // 10
    assert places[-1] > len(book.facts) * 8 // 10
    with pytest.raises(ValueError, match="states"):
        facts.handbook_questions(book, 1, len(book.facts) + 1)


def test_passages_stand_under_the_system_text_one_a_line() -> None:
    assert facts.system_content("Be brief.", ["A.", "B."]) == "Be brief.\n[1] A.\n[2] B."
    assert facts.system_content("", ["A."]) == "[1] A."
    assert [message.role for message in facts.prompt("", [], "Who?")] == ["user"]


def test_the_adapters_hold_different_facts_about_different_entities() -> None:
    harbour, observatory = (facts.adapter_facts(name) for name in facts.ADAPTER_KINDS)
    assert len(harbour) == len(observatory) == facts.ADAPTER_FACTS
    assert not {fact.entity.name for fact in harbour} & {fact.entity.name for fact in observatory}


def test_the_world_and_its_folder_import_no_torch() -> None:
    code = (
        "import sys, memserve.demo.facts, memserve.demo.adapters; sys.exit(any(m in sys.modules for m in "
        "('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
