"""The gate: is a module version fit to be promoted? Its probes' answers, and the base's to the same probes,
become figures. Pure.
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
# Shares are quotients: what is equal on paper differs by this much at most.
_ROUNDING = 1e-9


class ProbeKind(StrEnum):
    """What a set of probes asks for."""

    RECALL = "recall"
    """The module's own questions, in phrasings that it was not trained on."""
    RETAIN = "retain"
    """Questions whose answers must not change."""
    ABSTAIN = "abstain"
    """Questions without an answer; right is to say so."""
    OVERRIDE = "override"
    """Passages that contradict the module: the text must win."""
    CUSTOM = "custom"
    """Anything else, with bars of its own."""


class Match(StrEnum):
    """When an answer is right: it equals one that is expected, or contains one."""

    EQUALS = "equals"
    CONTAINS = "contains"


@dataclass(frozen=True, slots=True)
class Probe:
    """A question with everything that its prompt holds. answers: any of them is right."""

    question: str
    answers: tuple[str, ...]
    system: str = ""
    passages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProbeSet:
    """Probes that make one figure.

    target: of a recall set, the share that the module is to reach: its teacher's, 1 where it has none.
    at_least: of a custom set, the least share of right answers. max_loss: of a custom set, how far under the
    base's share it may be.
    """

    name: str
    kind: ProbeKind
    probes: tuple[Probe, ...]
    match: Match = Match.EQUALS
    target: float = 1.0
    at_least: float | None = None
    max_loss: float | None = None


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The bars of the kinds.

    recall: least share of the set's target. override: least share of the base's. forgetting, abstention: how
    far under the base's share a module may be. calibration: how far over the base's calibration error.
    """

    recall: float = 0.9
    forgetting: float = 0.02
    abstention: float = 0.05
    override: float = 0.95
    calibration: float = 0.02


def strictest(given: Sequence[Thresholds]) -> Thresholds:
    """Each bar as the strictest of several has it."""
    return Thresholds(
        recall=max(one.recall for one in given),
        forgetting=min(one.forgetting for one in given),
        abstention=min(one.abstention for one in given),
        override=max(one.override for one in given),
        calibration=min(one.calibration for one in given),
    )


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered to a probe. confidence: `confidence` of its tokens' log-probabilities."""

    text: str
    confidence: float


def confidence(logprobs: Sequence[float]) -> float:
    """The geometric mean of the probabilities of an answer's tokens; 0 for an answer without tokens, which
    claims nothing.
    """
    return min(1.0, math.exp(sum(logprobs) / len(logprobs))) if logprobs else 0.0


def right(answer: str, expected: Iterable[str], match: Match = Match.EQUALS) -> bool:
    """Whether an answer is one of those expected (or contains one), apart from case and white space."""
    given = _normal(answer)
    if match is Match.CONTAINS:
        return any(_normal(each) in given for each in expected)
    return any(_normal(each) == given for each in expected)


def calibration_error(confident_right: Sequence[tuple[float, bool]]) -> float:
    """The expected calibration error over (confidence, whether right): how far confidence and success are
    apart.

    Confidences from 0 to 1 in ten equal bins, each weighted by its answers. 0 for no answers.
    Source: Guo et al. 2017, "On calibration of modern neural networks".
    """
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(CONFIDENCE_BINS)]
    for sure, correct in confident_right:
        bins[min(int(sure * CONFIDENCE_BINS), CONFIDENCE_BINS - 1)].append((sure, correct))
    gaps = (abs(sum(sure for sure, _ in each) - sum(correct for _, correct in each)) for each in bins)
    return sum(gaps) / len(confident_right) if confident_right else 0.0


def judge(
    sets: Sequence[ProbeSet], thresholds: Thresholds, base: Sequence[Answer], module: Sequence[Answer]
) -> tuple[GateFigure, ...]:
    """A figure for every set, under its name, and the calibration over the sets of the kinds retain, abstain
    and override.

    base, module: [probes] answers to the probes of all sets, in order. The gate is passed when all figures
    hold. Raises ValueError when their number is another.
    """
    asked = sum(len(each.probes) for each in sets)
    if not len(base) == len(module) == asked:
        raise ValueError(f"{len(base)} answers of the base and {len(module)} of the module to {asked} probes")
    figures = []
    alike: list[tuple[tuple[float, bool], tuple[float, bool]]] = []
    start = 0
    for each in sets:
        end = start + len(each.probes)
        of_base, of_module = _judged(each, base[start:end]), _judged(each, module[start:end])
        figures.append(_set_figure(each, thresholds, _share(of_base), _share(of_module)))
        if each.kind in (ProbeKind.RETAIN, ProbeKind.ABSTAIN, ProbeKind.OVERRIDE):
            alike += zip(of_base, of_module, strict=True)
        start = end
    if alike:
        error, module_error = (
            calibration_error([one for one, _ in alike]),
            calibration_error([one for _, one in alike]),
        )
        bar = error + thresholds.calibration
        rule = (
            f"at most {_figure(bar)} (base {_figure(error)}, worse by at most "
            f"{_figure(thresholds.calibration)})"
        )
        figures.append(
            GateFigure(CALIBRATION, error, module_error, rule, module_error <= bar + _ROUNDING, len(alike))
        )
    return tuple(figures)


def failing(figures: Iterable[GateFigure]) -> str:
    """The figures that do not hold, on one line, such as "abstention 0.06, must be at least 0.93 (base 0.98,
    loss at most 0.05)".
    """
    return "; ".join(
        f"{each.name} {_figure(each.module)}, must be {each.rule}" for each in figures if not each.holds
    )


def _set_figure(of: ProbeSet, thresholds: Thresholds, base: float, module: float) -> GateFigure:
    match of.kind:
        case ProbeKind.RECALL:
            bar = thresholds.recall * of.target
            rule = (
                f"at least {_figure(bar)} ({_figure(thresholds.recall)} of the target {_figure(of.target)})"
            )
        case ProbeKind.RETAIN:
            bar, rule = _no_loss(base, thresholds.forgetting)
        case ProbeKind.ABSTAIN:
            bar, rule = _no_loss(base, thresholds.abstention)
        case ProbeKind.OVERRIDE:
            bar = thresholds.override * base
            rule = f"at least {_figure(bar)} ({_figure(thresholds.override)} of the base's {_figure(base)})"
        case ProbeKind.CUSTOM:
            bar, rule = of.at_least or 0.0, f"at least {_figure(of.at_least or 0.0)}"
            if of.max_loss is not None and base - of.max_loss > bar:
                bar, rule = _no_loss(base, of.max_loss)
    return GateFigure(of.name, base, module, rule, module >= bar - _ROUNDING, len(of.probes))


def _no_loss(base: float, loss: float) -> tuple[float, str]:
    bar = max(0.0, base - loss)
    return bar, f"at least {_figure(bar)} (base {_figure(base)}, loss at most {_figure(loss)})"


def _judged(of: ProbeSet, answers: Sequence[Answer]) -> list[tuple[float, bool]]:
    return [
        (answer.confidence, right(answer.text, probe.answers, of.match))
        for probe, answer in zip(of.probes, answers, strict=True)
    ]


def _share(judged: Sequence[tuple[float, bool]]) -> float:
    return sum(correct for _, correct in judged) / len(judged) if judged else 0.0


def _normal(text: str) -> str:
    return " ".join(text.split()).casefold()


def _figure(value: float) -> str:
    return f"{round(value, 3):g}"
