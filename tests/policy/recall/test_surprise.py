"""What a model says already is not stored, what it half expects is stored weaker, what is new is stored."""

from __future__ import annotations

import pytest

from memserve.errors import InvalidField
from memserve.policy.recall.surprise import SurprisePolicy, judge, not_judged, sentences

KNOWN = [-6.0, -9.0, -7.0, -0.1, -0.1, -0.2, -0.3, -0.1, -0.1]
"""The subject is never foreseen; what is said of it is."""
NEWS = [*KNOWN[:6], -0.1, -9.0, -0.1]
HALF = [*KNOWN[:6], -0.1, -2.5, -0.1]


def test_a_known_sentence_is_not_stored_though_its_subject_is_not_foreseen() -> None:
    score = judge([KNOWN], None)
    assert not score.stored
    assert score.strength == 0.0
    assert score.nats_per_token == pytest.approx(22.9 / 9)
    assert score.nats_per_token_recalled is None
    assert "says it already" in score.reason


def test_one_word_that_is_not_expected_makes_it_new() -> None:
    score = judge([NEWS], None)
    assert score.stored
    assert score.strength == 1.0


def test_what_is_half_expected_is_stored_weaker() -> None:
    assert judge([HALF], None).strength == pytest.approx(0.625)
    just = judge([[-0.1, -1.0]], None)
    assert just.stored
    assert just.strength == 0.25


def test_what_is_remembered_counts_before_what_the_model_says_alone() -> None:
    repeated = judge([NEWS], [KNOWN])
    assert not repeated.stored
    assert repeated.nats_per_token_recalled == pytest.approx(22.9 / 9)
    contradiction = judge([KNOWN], [NEWS])
    assert contradiction.stored
    assert contradiction.strength == 1.0


def test_one_new_sentence_among_known_ones_is_stored() -> None:
    assert judge([KNOWN, NEWS, KNOWN], None).stored
    assert not judge([KNOWN, KNOWN], None).stored


def test_what_cannot_be_judged_is_stored_and_says_why() -> None:
    score = not_judged("no worker")
    assert score.stored
    assert score.strength == 1.0
    assert score.nats_per_token is None
    assert score.reason == "not judged: no worker"
    with pytest.raises(ValueError, match="without tokens"):
        judge([[]], None)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("The gate is 46. It is 3.14 km!  Is it?", ["The gate is 46.", " It is 3.14 km!", "  Is it?"]),
        ("门是四十六号。今天开放！", ["门是四十六号。", "今天开放！"]),
        ("one\ntwo\n", ["one\n", "two\n"]),
        ("So... what?! ", ["So...", " what?! "]),
        ("", []),
    ],
)
def test_sentences_together_are_the_text(text: str, parts: list[str]) -> None:
    assert sentences(text) == parts
    assert "".join(parts) == text


@pytest.mark.parametrize(
    "fields",
    [
        {"known_below": 5.0},
        {"known_below": -1.0},
        {"new_from": float("nan")},
        {"new_from": float("inf")},
        {"least_strength": 0.0},
        {"end_share": 0.0},
        {"end_share": 1.5},
    ],
)
def test_thresholds_that_cannot_be_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(InvalidField):
        SurprisePolicy(**fields)
