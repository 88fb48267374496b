"""What a model says already is not stored, what it half expects is stored weaker, what is new is stored."""

from __future__ import annotations

import pytest

from memserve.domain import SurpriseScore
from memserve.errors import InvalidField
from memserve.policy.recall.surprise import SurprisePolicy, judge, judged_words, not_judged

TEXT = "The gate of Rainy Siding is forty six."
SPANS = [(0, 3), (3, 8), (8, 11), (11, 17), (17, 24), (24, 27), (27, 30), (30, 33), (33, 37), (37, 38)]
"""Words of one token, but for forty, which has two, and the full stop."""
KNOWN = [-6.0, -9.0, -0.1, -7.0, -9.0, -0.1, -0.2, -0.3, -0.1, -3.0]
"""The subject is never foreseen; what is said of it is. Whether the sentence ends is no news."""
NEWS = [*KNOWN[:8], -9.0, -0.1]
HALF = [*KNOWN[:6], -2.0, -3.0, -0.1, -0.1]
"""No token is unexpected, and the word is."""


def judged(alone: list[float], recalled: list[float] | None = None) -> SurpriseScore:
    return judge(TEXT, SPANS, alone, recalled, [TEXT])


def test_a_known_sentence_is_not_stored_though_its_subject_is_not_foreseen() -> None:
    score = judged(KNOWN)
    assert not score.stored
    assert score.strength == 0.0
    assert score.nats_per_token == pytest.approx(34.8 / 10)
    assert score.nats_per_token_recalled is None
    assert "says it already" in score.reason


def test_one_word_that_is_not_expected_makes_it_new() -> None:
    score = judged(NEWS)
    assert score.stored
    assert score.strength == 1.0


def test_a_word_counts_as_a_whole_and_what_is_half_expected_is_stored_weaker() -> None:
    half = judged(HALF)
    assert "5.00 nats" in half.reason
    assert half.strength == pytest.approx(0.625)
    just = judge("so so so", [(0, 2), (2, 5), (5, 8)], [-9.0, -9.0, -4.0], None)
    assert just.stored
    assert just.strength == 0.25


def test_what_is_remembered_counts_before_what_the_model_says_alone() -> None:
    repeated = judged(NEWS, KNOWN)
    assert not repeated.stored
    assert repeated.nats_per_token_recalled == pytest.approx(34.8 / 10)
    contradiction = judged(KNOWN, NEWS)
    assert contradiction.stored
    assert contradiction.strength == 1.0


def test_one_new_sentence_among_known_ones_is_stored() -> None:
    text = f"{TEXT} {TEXT}"
    spans = [*SPANS, *((start + 39, end + 39) for start, end in SPANS)]
    assert judge(text, spans, [*NEWS, *KNOWN], None).stored
    assert judge(text, spans, [*KNOWN, *NEWS], None).stored
    assert not judge(text, spans, [*KNOWN, *KNOWN], None).stored


def test_what_cannot_be_judged_is_stored_and_says_why() -> None:
    score = not_judged("no worker")
    assert score.stored
    assert score.strength == 1.0
    assert score.nats_per_token is None
    assert score.reason == "not judged: no worker"
    with pytest.raises(ValueError, match="without tokens"):
        judge("", [], [], None)


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        (TEXT, ["forty", "six."]),
        ("The gate is 46. It is 3.14 km!  Is it so?", ["46.", "km!", "so?"]),
        ("门是四十六号。今天开放！", ["六", "号", "放"]),
        ("one two three\nfour five six seven - \n", ["three", "seven"]),
        ("word", ["d"]),
        ("?!", []),
        ("", []),
    ],
)
def test_a_sentence_is_judged_by_its_last_third(text: str, ends: list[str]) -> None:
    assert [text[start:end] for start, end in judged_words(text, 1 / 3)] == ends


def test_a_word_that_no_near_memory_has_counts_wherever_it_stands() -> None:
    near = ["The RAINY gate, of forty-six: Siding is six"]
    found = [TEXT[start:end] for start, end in judged_words(TEXT, 1 / 3, near)]
    assert found == ["forty", "six."]
    other = TEXT.replace("Rainy", "Sunny")
    found = [other[start:end] for start, end in judged_words(other, 1 / 3, near)]
    assert found == ["Sunny", "forty", "six."]
    assert not judge(TEXT, SPANS, KNOWN, KNOWN, near).stored
    assert judge(other, SPANS, KNOWN, KNOWN, near).stored


@pytest.mark.parametrize(
    "fields",
    [
        {"known_below": 7.0},
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
