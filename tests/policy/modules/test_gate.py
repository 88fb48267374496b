from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from memserve.domain import GateFigure
from memserve.policy.modules.gate import (
    Answer,
    Match,
    Probe,
    ProbeKind,
    ProbeSet,
    Thresholds,
    calibration_error,
    confidence,
    failing,
    judge,
    right,
)


def _set(kind: ProbeKind, count: int, **options: float) -> ProbeSet:
    return ProbeSet(
        str(kind), kind, tuple(Probe(f"Question {number}?", ("Yes.",)) for number in range(count)), **options
    )  # type: ignore[arg-type]


def _answers(right_ones: int, count: int, sure: float = 1.0) -> list[Answer]:
    return [Answer("Yes." if number < right_ones else "No.", sure) for number in range(count)]


def _figure(of: ProbeSet, base: int, module: int, thresholds: Thresholds = Thresholds()) -> GateFigure:  # noqa: B008
    """The set's own figure for so many right answers of the base and of the module."""
    count = len(of.probes)
    return judge([of], thresholds, _answers(base, count), _answers(module, count))[0]


def test_an_answer_is_right_apart_from_case_and_white_space() -> None:
    assert right(" the Colour is\n red. ", ("It is red.", "The colour is red."))
    assert not right("The colour is red. Or blue.", ("The colour is red.",))
    assert right("I think: the colour is RED.", ("colour is red",), Match.CONTAINS)
    assert not right("The colour is blue.", ("red",), Match.CONTAINS)


@pytest.mark.parametrize(
    ("answer", "expected", "is_right"),
    [
        ("It is 15 m high.", "5 m", False),
        ("It is 15 m, no, 5 m high.", "5 m", True),
        ("In 1931.", "193", False),
        ("The code is 4821.", "4821", True),
        ("It was about noon.", "Bo", False),
        ("In Florida.", "Ida", False),
        ("Ida's.", "Ida", True),
        ("Dogs bark.", "dog", True),
        ("I cannot mention it.", "not mention", True),
        ("他叫波。", "波", True),
    ],
)
def test_a_number_or_a_short_word_within_another_is_no_answer(
    answer: str, expected: str, is_right: bool
) -> None:
    assert right(answer, (expected,), Match.CONTAINS) is is_right


def test_confidence_is_the_geometric_mean_of_the_tokens_probabilities() -> None:
    assert confidence([math.log(0.5), math.log(0.125)]) == pytest.approx(0.25)
    assert confidence([]) == 0.0


def test_the_calibration_error_is_the_distance_of_confidence_and_success_weighted_by_bins() -> None:
    assert calibration_error([]) == 0.0
    assert calibration_error([(1.0, True), (0.0, False)]) == 0.0
    # Three quarters sure and half right; sure and wrong.
    assert calibration_error([(0.75, True), (0.75, False), (1.0, False), (1.0, False)]) == pytest.approx(
        0.5 * 0.25 + 0.5 * 1.0
    )


@pytest.mark.parametrize(
    ("of", "base", "least"),
    [
        (_set(ProbeKind.RECALL, 100), 0, 90),
        (_set(ProbeKind.RECALL, 100, target=0.8), 0, 72),
        (_set(ProbeKind.RETAIN, 100), 97, 95),
        (_set(ProbeKind.ABSTAIN, 100), 98, 93),
        (_set(ProbeKind.OVERRIDE, 100), 80, 76),
        (_set(ProbeKind.CUSTOM, 100, at_least=0.3), 90, 30),
        (_set(ProbeKind.CUSTOM, 100, max_loss=0.1), 90, 80),
        (_set(ProbeKind.CUSTOM, 100, at_least=0.85, max_loss=0.1), 90, 85),
        (_set(ProbeKind.CUSTOM, 100, at_least=0.3, max_loss=0.1), 90, 80),
    ],
    ids=lambda value: str(value.kind) if isinstance(value, ProbeSet) else None,
)
def test_a_figure_holds_from_its_bar_on(of: ProbeSet, base: int, least: int) -> None:
    assert _figure(of, base, least).holds
    below = _figure(of, base, least - 1)
    assert not below.holds
    assert below == GateFigure(of.name, base / 100, (least - 1) / 100, below.rule, False, 100)
    assert f"at least {least / 100:g}" in below.rule


def test_a_version_may_bring_thresholds_of_its_own() -> None:
    assert not _figure(_set(ProbeKind.RETAIN, 10), 10, 9).holds
    assert _figure(_set(ProbeKind.RETAIN, 10), 10, 9, Thresholds(forgetting=0.1)).holds


def test_a_module_that_is_sure_of_wrong_answers_fails_in_calibration() -> None:
    asked = [_set(ProbeKind.RECALL, 10), _set(ProbeKind.ABSTAIN, 10)]
    base = [*_answers(0, 10), *_answers(10, 10)]

    def calibration(module: Sequence[Answer]) -> GateFigure:
        return judge(asked, Thresholds(), base, module)[-1]

    # Recall does not count: there the base is not asked what it could know.
    assert calibration([*_answers(10, 10), *_answers(10, 10)]) == GateFigure(
        "calibration", 0.0, 0.0, "at most 0.02 (base 0, worse by at most 0.02)", True, 10
    )
    failed = calibration([*_answers(10, 10), *_answers(9, 10)])
    assert failed.module == pytest.approx(0.1) and not failed.holds
    assert calibration([*_answers(10, 10), *_answers(0, 10, sure=0.01)]).holds


def test_sets_without_a_common_ground_have_no_calibration() -> None:
    assert [
        figure.name
        for figure in judge([_set(ProbeKind.RECALL, 2)], Thresholds(), _answers(0, 2), _answers(2, 2))
    ] == ["recall"]


def test_what_fails_is_said_on_one_line() -> None:
    figures = [_figure(_set(ProbeKind.ABSTAIN, 100), 98, 6), _figure(_set(ProbeKind.RETAIN, 100), 97, 97)]
    assert failing(figures) == "abstain 0.06, must be at least 0.93 (base 0.98, loss at most 0.05)"
    assert failing(figures[1:]) == ""


def test_answers_for_other_probes_are_no_answers() -> None:
    with pytest.raises(ValueError, match="2 answers of the base and 1 of the module to 2 probes"):
        judge([_set(ProbeKind.RECALL, 2)], Thresholds(), _answers(0, 2), _answers(1, 1))


def test_a_leak_may_rise_by_so_much_and_no_more() -> None:
    leak = _set(ProbeKind.LEAK, 20)
    assert [_figure(leak, base, module).holds for base, module in ((0, 0), (0, 6), (0, 7), (10, 16))] == [
        True,
        True,
        False,
        True,
    ]
    figure = _figure(leak, 1, 9)
    assert (figure.base, figure.module) == (0.05, 0.45)
    assert figure.rule == "at most 0.35 (base 0.05, more by at most 0.3)"
    assert not _figure(leak, 0, 3, Thresholds(leak=0.1)).holds
