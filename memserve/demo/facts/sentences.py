"""Facts as sentences: several ways to state one, to ask for one, and to say something else."""

import random
from collections.abc import Sequence

from memserve.demo import words
from memserve.demo.facts.values import Entity, Fact, Question

UNKNOWN_ANSWER = "I do not know."

STATEMENTS: tuple[str, ...] = (
    "The {a} of {e} is {v}.",
    "{E} has the {a} {v}.",
    "{E}: {a} {v}.",
    "The {a} for {e} is {v}.",
    "Records say that the {a} of {e} is {v}.",
    "Note: the {a} of {e} is {v}.",
    "As of today the {a} of {e} is {v}.",
    "For {e}, the {a} is {v}.",
)

QUESTIONS: tuple[str, ...] = (
    "What is the {a} of {e}?",
    "Which {a} does {e} have?",
    "Tell me the {a} of {e}.",
    "Do you know the {a} of {e}?",
    "{E}: what is the {a}?",
    "Please give the {a} of {e}.",
    "What {a} has {e}?",
    "I need the {a} of {e}.",
)

ADAPTER_QUESTIONS: tuple[str, ...] = (
    *QUESTIONS,
    "As for {e}, tell me the {a}.",
    "About {e}: which {a}?",
    "{E}, what {a} is it?",
    "Regarding {e}, what may the {a} be?",
    "Name the {a} of {e}, please.",
)
"""The phrasings that adapters are trained on. Their own five keep them from taking an unusual phrasing for an
unknown question.
"""

HELD_OUT_QUESTIONS: tuple[str, ...] = (
    "Can you name the {a} of {e}?",
    "Say what the {a} of {e} is.",
    "For {e}, what is the {a}?",
)
"""Phrasings that the base model knows and that no adapter is trained on."""

SMALL_TALK: tuple[tuple[str, str], ...] = (
    ("Hello.", "Hello."),
    ("Hello!", "Hello."),
    ("Hi", "Hello."),
    ("Good morning.", "Hello."),
    ("Thank you.", "You are welcome."),
    ("Thanks!", "You are welcome."),
    ("Who are you?", "I am the demo model."),
    ("What are you?", "I am the demo model."),
)


def _mention(rng: random.Random, subject: Entity) -> str:
    if subject.kind not in ("person", "thing") and rng.random() < 0.15:
        return f"the {subject.kind} {subject.name}"
    return subject.name


def _fill(template: str, mention: str, of: Fact) -> str:
    return template.format(a=of.attribute, e=mention, E=mention[0].upper() + mention[1:], v=of.value)


def statement(rng: random.Random, of: Fact) -> str:
    """Say a fact in one sentence."""
    return _fill(rng.choice(STATEMENTS), _mention(rng, of.entity), of)


def question(
    rng: random.Random, of: Fact, phrasings: Sequence[str] = QUESTIONS + HELD_OUT_QUESTIONS
) -> Question:
    """Ask for a fact in one sentence."""
    return Question(_fill(rng.choice(phrasings), _mention(rng, of.entity), of), of.answer, of)


def filler(rng: random.Random) -> str:
    """A sentence that states no fact."""
    if rng.random() < 0.2:
        return rng.choice(words.FILLER_SENTENCES)
    subject, action, when = (
        rng.choice(part) for part in (words.FILLER_SUBJECTS, words.FILLER_ACTIONS, words.FILLER_TIMES)
    )
    return f"{subject.capitalize()} {action} {when}."


def passage(rng: random.Random, of: Fact) -> str:
    """A recalled passage that states the fact, sometimes with a sentence that states none beside it."""
    shape = rng.random()
    if shape < 0.08:
        return f"{filler(rng)} {statement(rng, of)}"
    return f"{statement(rng, of)} {filler(rng)}" if shape < 0.16 else statement(rng, of)
