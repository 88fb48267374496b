"""The gate: is a module version fit to be promoted?

The version and the base model answer the same probes. Their answers become figures, and each figure has a
bar.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from memserve.domain import GateFigure

CALIBRATION = "calibration"
"""The figure over all sets that base and module should answer alike. No set has this name."""
CONFIDENCE_BINS = 10
SHORT_CHARS = 3
"""A word of so few letters stands by chance in longer ones."""
# Shares are quotients. Two that are equal on paper differ by at most this much.
_ROUNDING = 1e-9


class ProbeKind(StrEnum):
    """What a set of probes asks for."""

    RECALL = "recall"
    """The module's own questions, in phrasings that it was not trained on."""
    RETAIN = "retain"
    """Questions whose answers must not change."""
    ABSTAIN = "abstain"
    """Questions without an answer. The right answer says so."""
    OVERRIDE = "override"
    """Passages that contradict the module: the text must win."""
    LEAK = "leak"
    """Questions about what the module was not taught. The answers are what it was taught: each is wrong
    here."""
    CUSTOM = "custom"
    """Any other questions, with the set's own bars."""


class Match(StrEnum):
    """When an answer is right: it equals an expected answer, or it contains one."""

    EQUALS = "equals"
    CONTAINS = "contains"


@dataclass(frozen=True, slots=True)
class Probe:
    """A question with everything that its prompt holds."""

    question: str
    answers: tuple[str, ...]
    """An answer that matches any of these is right."""
    system: str = ""
    passages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProbeSet:
    """Probes that make one figure."""

    name: str
    kind: ProbeKind
    probes: tuple[Probe, ...]
    match: Match = Match.EQUALS
    target: float = 1.0
    """Recall sets only: the share of right answers to reach. It is the teacher's share, 1 without a
    teacher."""
    at_least: float | None = None
    """Custom sets only: the least share of right answers."""
    max_loss: float | None = None
    """Custom sets only: how far the share may be under the base's."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The bars of the kinds of probes."""

    recall: float = 0.9
    """The least part of the set's target."""
    forgetting: float = 0.02
    """How far a retain set's share may be under the base's."""
    abstention: float = 0.05
    """How far an abstain set's share may be under the base's."""
    override: float = 0.95
    """The least part of the base's share."""
    calibration: float = 0.02
    """How far the calibration error may be over the base's."""
    leak: float = 0.3
    """How far a leak set's share may be over the base's."""


def strictest(thresholds: Sequence[Thresholds]) -> Thresholds:
    """Each bar from the thresholds that are strictest in it."""
    return Thresholds(
        recall=max(bars.recall for bars in thresholds),
        forgetting=min(bars.forgetting for bars in thresholds),
        abstention=min(bars.abstention for bars in thresholds),
        override=max(bars.override for bars in thresholds),
        calibration=min(bars.calibration for bars in thresholds),
        leak=min(bars.leak for bars in thresholds),
    )


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a probe."""

    text: str
    confidence: float
    """The function `confidence` over the log-probabilities of the answer's tokens."""


def confidence(logprobs: Sequence[float]) -> float:
    """The geometric mean of the probabilities of an answer's tokens.

    An answer without tokens claims nothing: its confidence is 0.
    """
    return min(1.0, math.exp(sum(logprobs) / len(logprobs))) if logprobs else 0.0


def right(answer: str, expected: Iterable[str], match: Match = Match.EQUALS) -> bool:
    """Whether an answer equals or contains an expected one. Case and white space do not count.

    A number is not contained in a longer one ("5" in "15"), a word of up to three letters not in the middle
    of another ("Bo" in "about").
    """
    text = _normal(answer)
    if match is Match.CONTAINS:
        return any(_contains(text, _normal(right_text)) for right_text in expected)
    return any(_normal(right_text) == text for right_text in expected)


def calibration_error(confident_right: Sequence[tuple[float, bool]]) -> float:
    """How far confidence and success are apart: the expected calibration error.

    confident_right: [answers] confidence from 0 to 1, and whether the answer is right. Ten equal bins of
    confidence count by their number of answers. Returns 0 without answers.
    Source: Guo et al. 2017, "On calibration of modern neural networks".
    """
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(CONFIDENCE_BINS)]
    for sure, correct in confident_right:
        bins[min(int(sure * CONFIDENCE_BINS), CONFIDENCE_BINS - 1)].append((sure, correct))
    gaps = (
        abs(sum(sure for sure, _ in answers) - sum(correct for _, correct in answers)) for answers in bins
    )
    return sum(gaps) / len(confident_right) if confident_right else 0.0


def judge(
    sets: Sequence[ProbeSet], thresholds: Thresholds, base: Sequence[Answer], module: Sequence[Answer]
) -> tuple[GateFigure, ...]:
    """One figure for each set, under the set's name, and one for calibration.

    The calibration is taken over the sets that base and module should answer alike: retain, abstain and
    override. The gate is passed when all figures hold.

    base, module: [probes] answers to the probes of all sets, in order.
    Raises ValueError for another number of answers.
    """
    probes = sum(len(probe_set.probes) for probe_set in sets)
    if not len(base) == len(module) == probes:
        raise ValueError(
            f"{len(base)} answers of the base and {len(module)} of the module to {probes} probes"
        )
    figures = []
    base_alike: list[tuple[float, bool]] = []
    module_alike: list[tuple[float, bool]] = []
    start = 0
    for probe_set in sets:
        end = start + len(probe_set.probes)
        of_base, of_module = _judged(probe_set, base[start:end]), _judged(probe_set, module[start:end])
        figures.append(_set_figure(probe_set, thresholds, _share(of_base), _share(of_module)))
        if probe_set.kind in (ProbeKind.RETAIN, ProbeKind.ABSTAIN, ProbeKind.OVERRIDE):
            base_alike += of_base
            module_alike += of_module
        start = end
    if base_alike:
        figures.append(_calibration_figure(thresholds.calibration, base_alike, module_alike))
    return tuple(figures)


def _calibration_figure(
    max_rise: float, of_base: Sequence[tuple[float, bool]], of_module: Sequence[tuple[float, bool]]
) -> GateFigure:
    base_error, module_error = calibration_error(of_base), calibration_error(of_module)
    bar = base_error + max_rise
    rule = f"at most {_figure(bar)} (base {_figure(base_error)}, worse by at most {_figure(max_rise)})"
    return GateFigure(
        CALIBRATION, base_error, module_error, rule, module_error <= bar + _ROUNDING, len(of_base)
    )


def failing(figures: Iterable[GateFigure]) -> str:
    """The figures that do not hold, on one line. Empty: all hold.

    An example: "abstention 0.06, must be at least 0.93 (base 0.98, loss at most 0.05)".
    """
    return "; ".join(
        f"{figure.name} {_figure(figure.module)}, must be {figure.rule}"
        for figure in figures
        if not figure.holds
    )


def _set_figure(probe_set: ProbeSet, thresholds: Thresholds, base: float, module: float) -> GateFigure:
    match probe_set.kind:
        case ProbeKind.RECALL:
            bar = thresholds.recall * probe_set.target
            target = _figure(probe_set.target)
            rule = f"at least {_figure(bar)} ({_figure(thresholds.recall)} of the target {target})"
        case ProbeKind.RETAIN:
            bar, rule = _no_loss(base, thresholds.forgetting)
        case ProbeKind.ABSTAIN:
            bar, rule = _no_loss(base, thresholds.abstention)
        case ProbeKind.OVERRIDE:
            bar = thresholds.override * base
            rule = f"at least {_figure(bar)} ({_figure(thresholds.override)} of the base's {_figure(base)})"
        case ProbeKind.LEAK:
            return _leak_figure(probe_set, thresholds.leak, base, module)
        case ProbeKind.CUSTOM:
            bar, rule = probe_set.at_least or 0.0, f"at least {_figure(probe_set.at_least or 0.0)}"
            if probe_set.max_loss is not None and base - probe_set.max_loss > bar:
                bar, rule = _no_loss(base, probe_set.max_loss)
    return GateFigure(probe_set.name, base, module, rule, module >= bar - _ROUNDING, len(probe_set.probes))


def _leak_figure(probe_set: ProbeSet, max_rise: float, base: float, module: float) -> GateFigure:
    bar = min(1.0, base + max_rise)
    rule = f"at most {_figure(bar)} (base {_figure(base)}, more by at most {_figure(max_rise)})"
    return GateFigure(probe_set.name, base, module, rule, module <= bar + _ROUNDING, len(probe_set.probes))


def _no_loss(base: float, loss: float) -> tuple[float, str]:
    bar = max(0.0, base - loss)
    return bar, f"at least {_figure(bar)} (base {_figure(base)}, loss at most {_figure(loss)})"


def _judged(probe_set: ProbeSet, answers: Sequence[Answer]) -> list[tuple[float, bool]]:
    return [
        (answer.confidence, right(answer.text, probe.answers, probe_set.match))
        for probe, answer in zip(probe_set.probes, answers, strict=True)
    ]


def _share(judged: Sequence[tuple[float, bool]]) -> float:
    return sum(correct for _, correct in judged) / len(judged) if judged else 0.0


def _contains(text: str, expected: str) -> bool:
    at = text.find(expected)
    while at >= 0 and expected:
        before, after = text[max(0, at - 1) : at], text[at + len(expected) : at + len(expected) + 1]
        longer = (before.isdecimal() and expected[0].isdecimal()) or (
            after.isdecimal() and expected[-1].isdecimal()
        )
        is_short = len(expected) <= SHORT_CHARS and expected.isascii() and expected.isalpha()
        if not longer and not (is_short and before.isascii() and before.isalpha()):
            return True
        at = text.find(expected, at + 1)
    return not expected


def _normal(text: str) -> str:
    return " ".join(text.split()).casefold()


def _figure(value: float) -> str:
    return f"{round(value, 3):g}"
