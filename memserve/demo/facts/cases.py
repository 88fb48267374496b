"""Prompts over the world: handbooks, questions for what they state, and cases to evaluate a model with."""

import random
import re
from collections.abc import Sequence

from memserve.demo import words
from memserve.demo.facts.sentences import UNKNOWN_ANSWER, filler, passage, question, statement
from memserve.demo.facts.values import Case, Fact, Handbook, Message, Need, Question, World
from memserve.demo.facts.world import distinct_facts, fact

_TOKEN = re.compile(r" ?[^\W\d_]+| ?\d{1,2}| ?[^\s\w]+|_+|\s+")


def system_content(system_text: str, passages: Sequence[str]) -> str:
    """Put recalled passages under a system text, one a line, as `[1] …`. Either may be empty."""
    lines = [system_text] if system_text else []
    return "\n".join(lines + [f"[{position}] {text}" for position, text in enumerate(passages, start=1)])


def prompt(system_text: str, passages: Sequence[str], user: str) -> tuple[Message, ...]:
    """The messages of a first question. There is no system message when there is nothing to put into it."""
    content = system_content(system_text, passages)
    asked = Message("user", user)
    return (Message("system", content), asked) if content else (asked,)


def count_tokens(text: str) -> int:
    """About as many as the demo tokenizer makes of text in the words of the demo world."""
    return sum(1 for _ in _TOKEN.finditer(text))


def handbook(seed: int, tokens: int, world: World = "held_out") -> Handbook:
    """Write a long system text: facts and sentences that state none, one a line.

    tokens: the length of the text in tokens of the demo model, within a few percent.
    The same seed and length give the same handbook. Raises ValueError when tokens < 1.
    """
    if tokens < 1:
        raise ValueError(f"a handbook has at least one token, not {tokens}")
    rng = random.Random(f"handbook-{seed}")
    lines = ["Handbook of stations, ships and people."]
    facts: list[Fact] = []
    taken: set[tuple[str, str]] = set()
    written = count_tokens(lines[0])
    while written < tokens:
        if rng.random() < 0.4:
            line = filler(rng)
        else:
            drawn = fact(rng, world)
            if drawn.key in taken:
                continue
            taken.add(drawn.key)
            facts.append(drawn)
            line = statement(rng, drawn)
        written += count_tokens(line) + 1
        lines.append(line)
    return Handbook("\n".join(lines), tuple(facts))


def handbook_questions(book: Handbook, seed: int, count: int) -> list[Question]:
    """Ask for facts that the handbook states, spread evenly over its length. Raises ValueError when it states
    fewer than count.
    """
    if count > len(book.facts):
        raise ValueError(f"the handbook states {len(book.facts)} facts, not {count}")
    rng = random.Random(f"handbook-questions-{seed}")
    return [
        question(rng, book.facts[(2 * place + 1) * len(book.facts) // (2 * count)]) for place in range(count)
    ]


def held_out_cases(seed: int, count: int, need: Need, world: World = "held_out") -> list[Case]:
    """Draw evaluation questions about entities that training never names, with and without a system text.

    need: "passage" puts the answer's passage among 0..4 others; "distractors" puts 1..5 others; "nothing"
    puts none. Of the others, 15 % are near misses: about the same entity, or about the same attribute of an
    entity whose name shares a word.
    """
    rng = random.Random(f"cases-{seed}-{need}-{world}")
    cases = []
    for _ in range(count):
        asked = fact(rng, world, wild_share=0.0)
        others = distinct_facts(
            rng, world, rng.randint(0, 4) if need == "passage" else rng.randint(1, 5), without=[asked]
        )
        shown = [] if need == "nothing" else others + ([asked] if need == "passage" else [])
        rng.shuffle(shown)
        system_text = rng.choice(words.SYSTEM_TEXTS) if rng.random() < 0.5 else ""
        asking = question(rng, asked)
        messages = prompt(system_text, [passage(rng, stated) for stated in shown], asking.text)
        cases.append(Case(messages, asking, asking.answer if need == "passage" else UNKNOWN_ANSWER, need))
    return cases
