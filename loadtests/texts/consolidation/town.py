"""A namespace of invented facts: stated once or several times, beside near misses and contradictions."""

from __future__ import annotations

import random
from dataclasses import dataclass

from memserve.demo import facts
from memserve.domain import MemoryKind, NewMemory

KINDS = ("ship", "telescope", "farm", "archive")
FACTS_EACH = 4


@dataclass(frozen=True, slots=True)
class Town:
    """Memories, with what each states."""

    memories: tuple[NewMemory, ...]
    stated: dict[str, tuple[str, str, str] | None]
    """By memory id: entity, attribute and value. None: it is no fact that may be merged."""
    contradicted: frozenset[str]
    """Ids of facts of which the namespace has two values."""
    asked: tuple[tuple[str, str], ...]
    """Questions in phrasings that no self-study has, with the value."""
    duplicates: int
    """Memories that say what another one says."""


def town(namespace: str, seed: int, entities: int) -> Town:
    """A fact has one to three memories in different words. No two entities have a name in common.

    Near misses: the same attribute and value of another entity, an episode in the same words, and for one
    fact in ten another value.
    """
    rng = random.Random(f"consolidation-{seed}")
    memories: list[NewMemory] = []
    stated: dict[str, tuple[str, str, str] | None] = {}
    contradicted: set[str] = set()
    asked: list[tuple[str, str]] = []
    duplicates = 0

    def add(text: str, says: tuple[str, str, str] | None, kind: MemoryKind = MemoryKind.FACT) -> str:
        memory_id = f"m{len(memories):04}"
        memories.append(NewMemory(namespace, text, memory_id=memory_id, kind=kind))
        stated[memory_id] = says
        return memory_id

    for first in facts.module_facts(rng, KINDS, entities):
        attributes = list(facts.ATTRIBUTES[first.entity.kind].items())
        for attribute, kind in rng.sample(attributes, min(FACTS_EACH, len(attributes))):
            fact = facts.Fact(first.entity, attribute, facts.value(rng, kind))
            says = (fact.entity.name, attribute, fact.value)
            forms = rng.sample(facts.STATEMENTS, rng.choice((1, 1, 1, 2, 3)))
            ids = [add(_stated(form, fact), says) for form in forms]
            duplicates += len(ids) - 1
            chance = rng.random()
            if chance < 0.1:
                other = facts.value(rng, kind)
                if other != fact.value:
                    contradicted |= {*ids, add(_stated(forms[0], facts.Fact(fact.entity, attribute, other)),
                                               (fact.entity.name, attribute, other))}  # fmt: skip
                    continue
            elif chance < 0.2:
                add(_stated(forms[0], fact), None, MemoryKind.EPISODE)
            elif chance < 0.3:
                near = facts.near_fact(rng, "held_out", fact)
                add(_stated(forms[0], facts.Fact(near.entity, attribute, fact.value)),
                    (near.entity.name, attribute, fact.value))  # fmt: skip
            asked.append((facts.question(rng, fact, facts.HELD_OUT_QUESTIONS).text, fact.value))
    return Town(tuple(memories), stated, frozenset(contradicted), tuple(asked), duplicates)


def _stated(form: str, fact: facts.Fact) -> str:
    name = fact.entity.name
    return form.format(a=fact.attribute, e=name, E=name[:1].upper() + name[1:], v=fact.value)
