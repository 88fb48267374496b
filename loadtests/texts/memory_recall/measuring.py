"""Figures and tables of answers."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence

from loadtests.harness.figures import print_table
from loadtests.texts.memory_recall.ways import (
    ABSTAINING,
    ALL_WAYS,
    CHOSEN,
    LINKED,
    MODULE,
    NONE,
    RECALL,
    RECALL_SOON,
    Asked,
    Way,
)
from loadtests.texts.memory_recall.worlds import CHANGED, HOP, KNOWN, NEAR_MISS, UNANSWERABLE, UNKNOWN
from memserve.domain import RecallOutcome, RecallSource

THRESHOLDS = (0.3, 0.5, 0.7, 0.9)
Figures = dict[str, dict[str, float]]


def share(truths: Sequence[bool]) -> float:
    """0 of nothing."""
    return sum(truths) / len(truths) if truths else 0.0


def of(asked: Sequence[Asked], way: Way, *kinds: str) -> list[Asked]:
    return [one for one in asked if one.way is way and one.question.kind in kinds]


def names_memory(asked: Asked) -> bool:
    """Whether the receipt names the memory that answers."""
    ids = {hit.memory.memory_id for hit in asked.answer.route.passages}
    return asked.question.memory_id in ids


def names_its_way(asked: Asked) -> bool:
    """Whether the receipt names what a right answer must have been made with: the memory, or the module."""
    if asked.way in (MODULE, CHOSEN):
        return any(module.name == asked.question.module for module in asked.answer.route.modules)
    return names_memory(asked)


def is_late(asked: Asked) -> bool:
    return any(
        part.source is RecallSource.TEXTS and part.outcome is RecallOutcome.LATE
        for part in asked.answer.route.recall
    )


def ways_figures(asked: Sequence[Asked]) -> Figures:
    """By way, over the questions whose answers memories say, and modules where the way needs one."""
    figures = {}
    for way in ALL_WAYS:
        known = of(asked, way, KNOWN)
        if way is CHOSEN:
            known = [one for one in known if one.question.module]
        if known:
            figures[way.name] = _figures_of(known)
    return figures


def _figures_of(asked: Sequence[Asked]) -> dict[str, float]:
    ttft_ms = sorted(one.answer.usage.ttft_ms for one in asked)
    recall_ms = sorted(one.recall_ms for one in asked if one.recall_ms is not None)
    right = [one for one in asked if one.right]
    return {
        "questions": len(asked),
        "right": share([one.right for one in asked]),
        "ttft_p50_ms": statistics.median(ttft_ms),
        "ttft_p95_ms": at_share(ttft_ms, 0.95),
        "prompt_tokens": statistics.mean(one.answer.usage.prompt_tokens for one in asked),
        "computed_tokens": statistics.mean(one.computed_tokens for one in asked),
        "recall_p50_ms": at_share(recall_ms, 0.5),
        "recall_p95_ms": at_share(recall_ms, 0.95),
        "late": share([is_late(one) for one in asked]),
        "right_and_named": share([names_its_way(one) for one in right]),
    }


def at_share(ordered: Sequence[float], at: float) -> float:
    """The value below which this share lies. 0 of nothing."""
    return ordered[min(int(at * len(ordered)), len(ordered) - 1)] if ordered else 0.0


def changed_figures(asked: Sequence[Asked]) -> Figures:
    """By kind of change, with recall: right answers, and the newest valid memory as the best passage."""
    figures = {}
    for kind in CHANGED:
        some = of(asked, RECALL, kind)
        if some:
            figures[kind] = {
                "questions": len(some),
                "right": share([one.right for one in some]),
                "newest_first": share([_is_best(one) for one in some]),
                "without_memory": share([one.right for one in of(asked, NONE, kind)]),
            }
    return figures


def _is_best(asked: Asked) -> bool:
    return asked.best is not None and asked.best.memory.memory_id == asked.question.memory_id


def abstention_figures(asked: Sequence[Asked]) -> Figures:
    """By least relevance: what a search with it leaves, told from the relevances of the receipts.

    `asked` has a last row of requests that were made with it.
    """
    figures = {
        f"{least:g}": _abstained(of(asked, RECALL, KNOWN, *UNANSWERABLE), least) for least in THRESHOLDS
    }
    asked_with = of(asked, ABSTAINING, KNOWN, *UNANSWERABLE)
    if asked_with:
        figures["asked with 0.5"] = _abstained(asked_with, 0.0)
    return figures


def _abstained(asked: Sequence[Asked], least: float) -> dict[str, float]:
    def silent(*kinds: str) -> float:
        return share([not _left(one, least) for one in asked if one.question.kind in kinds])

    known = [one for one in asked if one.question.kind == KNOWN]
    return {
        "unknown_silent": silent(UNKNOWN),
        "near_miss_silent": silent(NEAR_MISS),
        "known_with_its_memory": share([one.question.memory_id in _left(one, least) for one in known]),
    }


def _left(asked: Asked, least: float) -> set[str]:
    return {hit.memory.memory_id for hit in asked.answer.route.passages if hit.relevance >= least}


def hop_figures(asked: Sequence[Asked]) -> Figures:
    """By way: questions whose answer a link leads to."""
    return {
        way.name: {
            "questions": len(of(asked, way, HOP)),
            "right": share([one.right for one in of(asked, way, HOP)]),
            "with_its_memory": share([names_memory(one) for one in of(asked, way, HOP)]),
        }
        for way in (RECALL, LINKED)
        if of(asked, way, HOP)
    }


def unanswered_figures(asked: Sequence[Asked]) -> Figures:
    """By way: how often a question without an answer is answered with "I do not know"."""
    return {
        way.name: {kind: share([one.right for one in of(asked, way, kind)]) for kind in UNANSWERABLE}
        for way in (NONE, RECALL, RECALL_SOON, ABSTAINING, CHOSEN)
        if of(asked, way, *UNANSWERABLE)
    }


def choice_figures(asked: Sequence[Asked]) -> Figures:
    """By kind of question: what `choose_module` chose."""
    kinds: dict[str, Callable[[Asked], bool]] = {
        "a module has it": lambda one: bool(one.question.module),
        "only memories have it": lambda one: bool(one.question.answer) and not one.question.module,
        "nothing has it": lambda one: not one.question.answer,
    }
    chosen = [one for one in asked if one.way is CHOSEN]
    figures = {}
    for name, belongs in kinds.items():
        some = [one for one in chosen if belongs(one)]
        if some:
            counts = Counter(one.choice for one in some)
            figures[name] = {"questions": len(some)} | {
                choice: counts[choice] / len(some) for choice in ("right", "wrong", "none")
            }
    return figures


def print_figures(title: str, figures: Figures) -> None:
    """A row for each name, a column for each figure."""
    if not figures:
        return
    columns = list(next(iter(figures.values())))
    print_table(
        (title, *(column.replace("_", " ") for column in columns)),
        [(name, *(_shown(column, row[column]) for column in columns)) for name, row in figures.items()],
    )
    print()


def _shown(column: str, figure: float) -> str:
    if column == "questions":
        return f"{figure:.0f}"
    return f"{figure:.1f}" if column.endswith(("_ms", "_tokens")) else f"{figure:.2f}"
