"""The parts of `loadtests.memory_quality`: what it generates, and how it fits and measures."""

from __future__ import annotations

import random

import pytest

from loadtests.texts.memory_quality.__main__ import TONGUES
from loadtests.texts.memory_quality.fitting import fit_logistic, reliability
from loadtests.texts.memory_quality.questions import NOW_S, generate
from loadtests.texts.memory_quality.tongues import Tongue
from memserve.policy.recall.choosing import usable_at
from memserve.policy.recall.relevance import probability


@pytest.mark.parametrize("tongue", TONGUES, ids=lambda tongue: tongue.name)
def test_questions_are_generated_the_same_from_a_seed_and_their_answers_hold(tongue: Tongue) -> None:
    made = generate(tongue, seed=1, names=8, held_out=True)
    again = generate(tongue, seed=1, names=8, held_out=True)
    assert (made.memories, made.questions) == (again.memories, again.questions)
    by_id = {memory.memory_id: memory for memory in made.memories}
    for question in made.questions:
        if question.right is None:
            assert not question.subject
            continue
        right = by_id[question.right]
        holding = [by_id[name] for name in question.subject if usable_at(by_id[name], NOW_S) is None]
        assert right == max(holding, key=lambda memory: memory.created_s)
    fitted = generate(tongue, seed=1, names=8, held_out=False)
    relations = {question.text for question in made.questions if question.kind == "paraphrase"}
    assert not relations & {question.text for question in fitted.questions}


def test_a_logistic_fit_finds_the_probabilities_that_labels_were_drawn_with() -> None:
    chance = random.Random(3)
    features = [[chance.uniform(-2, 2)] for _ in range(4000)]
    labels = [chance.random() < probability(2 * x - 1) for (x,) in features]
    intercept, slope = fit_logistic(features, labels)
    assert intercept == pytest.approx(-1, abs=0.25)
    assert slope == pytest.approx(2, abs=0.25)
    predicted = [probability(intercept + slope * x) for (x,) in features]
    assert reliability(predicted, labels).ece < 0.03


def test_the_calibration_error_is_the_distance_of_what_is_said_from_what_is_seen() -> None:
    told = reliability([0.95] * 10, [True] * 5 + [False] * 5)
    assert told.ece == pytest.approx(0.45)
    ((bounds, hits, mean, seen),) = told.rows
    assert (bounds, hits, seen) == ("0.9 to 1.0", 10, 0.5)
    assert mean == pytest.approx(0.95)
