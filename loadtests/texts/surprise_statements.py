"""Statements for `loadtests.memory_surprise`, with what is remembered beside each."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from memserve.demo import facts
from memserve.demo.adapters import held_facts
from memserve.demo.facts import Entity, Fact

OTHERS = 3
"""Passages of other things beside one that matters."""


@dataclass(frozen=True, slots=True)
class Statement:
    """A text that may be remembered."""

    label: str
    """Its class, for a person."""
    text: str
    is_news: bool
    """Whether it says what neither the model nor a near memory says."""
    near: tuple[str, ...] = ()
    """What is remembered."""
    with_module: bool = False
    """Whether the module that knows the facts is asked."""
    expected: bool = True
    """Whether a bar counts it. Not: in words that the model would not use, which is reported."""


def demo_statements(draw: random.Random, count: int) -> list[Statement]:
    """Of the demo's world: some that its adapter knows, some that a passage states, some new ones."""
    held = [
        Fact(Entity(fact.entity, fact.kind), fact.attribute, fact.value) for fact in held_facts("harbour")
    ]
    new = [facts.fact(draw, "held_out", wild_share=0.0) for _ in range(count)]
    return [*_of_memory(draw, new), *_of_module(draw, held[:count])]


def _of_memory(draw: random.Random, new: Sequence[Fact]) -> Iterator[Statement]:
    for fact in new:
        near = _near(draw, fact)
        said, other = facts.statement(draw, fact), _contradiction(draw, fact)
        yield Statement("new, nothing near", said, True)
        yield Statement("new, other things near", said, True, _near(draw))
        yield Statement("remembered, in the model's words", fact.answer, False, near)
        yield Statement("remembered, in any words", said, False, near, expected=False)
        yield Statement("contradicts a memory, in any words", facts.statement(draw, other), True, near)


def _of_module(draw: random.Random, known: Sequence[Fact]) -> Iterator[Statement]:
    for fact in known:
        said, other = facts.statement(draw, fact), _contradiction(draw, fact)
        near, against = _near(draw), (other.answer,)
        yield Statement("known, in the model's words", fact.answer, False, (), True)
        yield Statement("known, other things near", fact.answer, False, near, True)
        yield Statement("known, in any words", said, False, (), True, expected=False)
        yield Statement("contradicts the model, in any words", facts.statement(draw, other), True, (), True)
        yield Statement("known, and contradicts a memory", fact.answer, True, against, True)


def _near(draw: random.Random, fact: Fact | None = None) -> tuple[str, ...]:
    """Passages of other things, and one that states the fact."""
    others = facts.distinct_facts(draw, "held_out", OTHERS, without=[fact] if fact else ())
    passages = [facts.statement(draw, each) for each in (*others, *([fact] if fact else []))]
    return tuple(draw.sample(passages, len(passages)))


def _contradiction(draw: random.Random, fact: Fact) -> Fact:
    """The same attribute of the same entity with another value."""
    kind = facts.ATTRIBUTES[fact.entity.kind][fact.attribute]
    while (value := facts.value(draw, kind)) == fact.value:
        pass
    return Fact(fact.entity, fact.attribute, value)


WORLD = (
    ("The capital of France is", "Paris", "Rome"),
    ("The capital of Japan is", "Tokyo", "Oslo"),
    ("The capital of Italy is", "Rome", "Cairo"),
    ("The capital of Germany is", "Berlin", "Madrid"),
    ("The capital of Spain is", "Madrid", "Lima"),
    ("The capital of Egypt is", "Cairo", "Berlin"),
    ("The largest planet of the solar system is", "Jupiter", "Mercury"),
    ("The chemical symbol of gold is", "Au", "Zn"),
    ("The chemical formula of water is", "H2O", "NaCl"),
    ("The author of Hamlet is William", "Shakespeare", "Dickens"),
    ("The first president of the United States was George", "Washington", "Orwell"),
    ("The earth goes around the", "sun", "library"),
    ("The opposite of hot is", "cold", "purple"),
    ("A week has seven", "days", "elephants"),
    ("The theory of relativity is by Albert", "Einstein", "Camus"),
    ("The longest river of Africa is the", "Nile", "Rhine"),
)
"""How a sentence begins, how it ends, and how it does not."""
PRIVATE = (
    "The code of the cellar door is 7342.",
    "Marta's dentist is in Quarry Lane.",
    "The boiler was serviced by Tobias Lindqvist.",
    "Our locker at the pool is number 58.",
    "The spare key is under the blue flowerpot.",
    "The cat's name is Bergamot.",
    "The printer on the third floor is called Vulture.",
    "Our team meets in room Andromeda.",
)
OTHER = (
    "The code of the cellar door is 1905.",
    "Marta's dentist is in Harbour Street.",
    "The boiler was serviced by Rosa Ibsen.",
    "Our locker at the pool is number 11.",
    "The spare key is under the wooden bench.",
    "The cat's name is Mango.",
    "The printer on the third floor is called Tulip.",
    "Our team meets in room Cassiopeia.",
)
"""Contradicts PRIVATE, one by one."""


def world_statements() -> list[Statement]:
    """Of the world, which a real model may know, and of a household, which none does."""
    found = []
    for beginning, right, wrong in WORLD:
        found += [
            Statement("known of the world", f"{beginning} {right}.", False, expected=False),
            Statement("contradicts the world", f"{beginning} {wrong}.", True, expected=False),
        ]
    for number, (text, other) in enumerate(zip(PRIVATE, OTHER, strict=True)):
        near = (PRIVATE[number - 1], text, PRIVATE[number - 2])
        found += [
            Statement("new, nothing near", text, True, expected=False),
            Statement("remembered", text, False, near, expected=False),
            Statement("contradicts a memory", other, True, near, expected=False),
        ]
    return found
