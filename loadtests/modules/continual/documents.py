"""Three documents of invented facts, and what is asked about them and beside them."""

from __future__ import annotations

import random
from dataclasses import dataclass

from loadtests.modules.distil.worlds import Asked, contradicted, passages_of
from memserve.demo import facts

KINDS = ("ship", "telescope", "farm", "archive")
NAMES = ("A", "B", "C")


@dataclass(frozen=True, slots=True)
class Document:
    """Memories, with questions in phrasings that no self-study has."""

    name: str
    memories: tuple[str, ...]
    recall: tuple[Asked, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """What the base can do, and a module must not lose."""

    columns: dict[str, tuple[Asked, ...]]


def documents(seed: int, count: int, facts_each: int) -> tuple[tuple[Document, ...], Reading]:
    """So many documents. No two share an entity or a value."""
    rng = random.Random(f"continual-{seed}")
    held = facts.module_facts(rng, KINDS, count * facts_each)
    made = []
    for place, name in enumerate(NAMES[:count]):
        own = held[place * facts_each : (place + 1) * facts_each]
        recall = tuple(
            Asked(facts.question(rng, fact, [phrasing]).text, (), (fact.answer,))
            for fact in own
            for phrasing in facts.HELD_OUT_QUESTIONS
        )
        made.append(Document(name, tuple(facts.passage(rng, fact) for fact in own), recall))
    columns = {
        need: tuple(
            Asked(case.question.text, passages_of(case), (case.expected,))
            for case in facts.held_out_cases(seed, 60, need)
        )
        for need in ("passage", "distractors", "nothing")
    }
    columns["text_wins"] = tuple(contradicted(rng, fact) for fact in held)
    return tuple(made), Reading(columns)
