"""A self-study is seeded, and what the gate asks is never trained on."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from loadtests.modules.distil.worlds import World, demo_world, smollm2_world
from memserve.policy.modules.gate import ProbeKind
from memserve.policy.modules.self_study import inventing, wording
from memserve.policy.modules.self_study.asking import probe_sets
from memserve.policy.modules.self_study.draw import Draw
from memserve.policy.modules.self_study.readings import Form, Reading, read_sentence, readings_of
from memserve.policy.modules.self_study.study import Lesson, LessonKind, Mix, Study, is_probed

SENTENCES = (
    "The founder of the Velmora Institute is Ida Kern.",
    "The motto of the Velmora Institute is Light Before Noon.",
    "The code of Amber Lantern is 4821.",
    "The Halden bakery is led by Ines Okafor.",
    "The library closes on Monday.",
    "Tarn hotel keeps a dog called Otis.",
)


def readings() -> list[Reading]:
    found = [read_sentence(sentence) for sentence in SENTENCES]
    return [reading for reading in found if reading is not None]


def draw(seed: int) -> Draw:
    return Draw(random.Random(seed).random)


def lessons(seed: int, count: int = 1500) -> list[Lesson]:
    study = Study(readings())
    by_seed = draw(seed)
    return [*study.facts(), *study.replay(by_seed, count, Mix())]


def test_equal_seeds_draw_equal_lessons() -> None:
    assert lessons(3, 50) == lessons(3, 50)
    assert lessons(3, 50) != lessons(4, 50)


def test_no_question_of_the_gate_is_trained_on() -> None:
    trained = {lesson.question for seed in range(3) for lesson in lessons(seed)}
    sets = probe_sets(Study(readings()), draw(9), 1.0)
    asked = {probe.question for probe_set in sets for probe in probe_set.probes}
    assert len(asked) > 100
    assert not trained & asked


@pytest.mark.parametrize("form", Form)
def test_a_held_out_phrasing_is_none_that_is_trained(form: Form) -> None:
    assert not set(wording.TRAINED[form]) & set(wording.HELD_OUT[form])
    assert not set(wording.PASSIVE_TRAINED) & set(wording.PASSIVE_HELD_OUT)


def test_made_up_things_of_lessons_and_probes_never_meet() -> None:
    study = Study(readings())
    for probe in (False, True):
        by_seed = draw(1)
        for _ in range(100):
            place = by_seed.below(len(study.readings))
            lesson = study.contradiction(by_seed, place, probe=probe)
            assert is_probed(f"{study.readings[place].subject}: {lesson.value}") == probe
    general = {question for question, _ in inventing.GENERAL[1::2]}
    assert not general & {lesson.question for lesson in lessons(2)}


def test_a_contradiction_says_another_value_and_is_right() -> None:
    study, by_seed = Study(readings()), draw(7)
    for place, reading in enumerate(study.readings):
        for _ in range(20):
            lesson = study.contradiction(by_seed, place)
            assert lesson.value != reading.value
            assert lesson.value in lesson.answer
            assert any(lesson.value in passage for passage in lesson.passages)


def test_an_unknown_thing_is_not_answered_by_its_passages() -> None:
    study, by_seed = Study(readings()), draw(11)
    subjects = {reading.subject for reading in study.readings}
    for _ in range(300):
        lesson = study.elsewhere(by_seed, by_seed.below(len(subjects)), probe=False)
        assert (lesson.kind, lesson.answer, lesson.passages) == (LessonKind.UNKNOWN, "", ())
        asked = study.readings[lesson.fact]
        assert lesson.question not in wording.questions(asked)


def test_the_probes_have_every_kind_that_the_gate_judges_a_distilled_version_by() -> None:
    sets = {probe_set.kind: probe_set for probe_set in probe_sets(Study(readings()), draw(0), 0.8)}
    assert set(sets) == set(ProbeKind) - {ProbeKind.CUSTOM}
    assert sets[ProbeKind.RECALL].target == 0.8
    assert len(sets[ProbeKind.RETAIN].probes) >= 100
    taught = {reading.value for reading in readings()}
    assert all(set(probe.answers) <= taught for probe in sets[ProbeKind.LEAK].probes)


def test_a_study_needs_something_to_learn() -> None:
    with pytest.raises(ValueError, match="no statement"):
        Study([])


@pytest.mark.parametrize("world", [demo_world, smollm2_world])
def test_what_the_benchmark_asks_is_in_no_lesson(world: Callable[[int], World]) -> None:
    made = world(3)
    found = [reading for text in made.memories for reading in readings_of(text)]
    assert {reading.value for reading in found} >= {
        right for each in made.columns["leak"][:1] for right in each.right
    }
    study, by_seed = Study(found), draw(5)
    trained = {each.question for each in (*study.facts(), *study.replay(by_seed, 2000, Mix()))}
    for column in ("recall", "paraphrase", "general"):
        assert not trained & {each.question for each in made.columns.get(column, ())}


def test_made_up_names_and_values_are_mostly_of_the_lexicon() -> None:
    """A name of many tokens would be told from the memories' names by that alone."""
    lexicon = inventing.Lexicon(names=("Otter", "Willow", "Granite"), nouns=("velvet", "saffron"))
    study = Study(readings(), lexicon)
    drawn = study.replay(draw(5), 400, Mix())
    named = [each for each in drawn if any(name in each.question for name in lexicon.names)]
    assert len(named) > 0.25 * len(drawn)
    assert not any(name in each.question for each in lessons(5) for name in lexicon.names)


def test_a_fact_is_asked_in_as_many_ways_as_wanted() -> None:
    [reading] = readings_of("The founder of the Velmora Institute is Ida Kern.")
    for phrasings in (1, 3, 13):
        study = Study([reading], phrasings=phrasings)
        assert len(study.facts()) == phrasings
        asked = {study.contradiction(draw(seed), 0).question for seed in range(40)}
        assert len(asked) <= phrasings
    assert len(study.facts()) < len(Study([reading]).facts())
