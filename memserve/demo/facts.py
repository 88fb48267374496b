"""A seeded world of small facts: who has what, said in several ways, asked in several ways.

A fact is a triple of entity, attribute and value. The names of entities are split by a checksum into three
worlds that never meet: one for training, one held out for evaluation, one for the adapters. Nothing here
imports torch.
"""

import random
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from memserve.demo import words

World = Literal["train", "held_out", "adapter"]
Role = Literal["system", "user", "assistant"]
Need = Literal["passage", "distractors", "nothing"]
"""What the prompt of a case holds: the answer's passage, only other passages, or no passage at all."""

UNKNOWN_ANSWER = "I do not know."

_TOKEN = re.compile(r" ?[^\W\d_]+| ?\d{1,2}| ?[^\s\w]+|_+|\s+")


@dataclass(frozen=True, slots=True)
class Entity:
    """A named thing. `kind` is a word such as "ship", or "thing" for what has no kind."""

    name: str
    kind: str


@dataclass(frozen=True, slots=True)
class Fact:
    """One attribute of one entity, with its only value."""

    entity: Entity
    attribute: str
    value: str

    @property
    def key(self) -> tuple[str, str]:
        """Entity name and attribute: two facts with one key contradict each other or are the same."""
        return (self.entity.name, self.attribute)

    @property
    def answer(self) -> str:
        """The exact text of a right answer."""
        return f"The {self.attribute} of {self.entity.name} is {self.value}."


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its expected answer, and the fact that it asks for."""

    text: str
    answer: str
    fact: Fact


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str

    def as_dict(self) -> dict[str, str]:
        """The shape that a chat template takes."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class Case:
    """One evaluation question: the messages up to it, the expected answer, and what the prompt holds."""

    messages: tuple[Message, ...]
    question: Question
    expected: str
    need: Need


@dataclass(frozen=True, slots=True)
class Handbook:
    """A long system text and every fact in it, in the order of the text."""

    text: str
    facts: tuple[Fact, ...]


# Entity kind -> attribute -> kind of value.
ATTRIBUTES: dict[str, dict[str, str]] = {
    "station": {
        "code": "code",
        "colour": "colour",
        "keeper": "person",
        "city": "city",
        "gate": "number",
        "signal": "animal",
    },
    "ship": {
        "captain": "person",
        "cargo": "good",
        "harbour": "city",
        "flag": "colour",
        "crew": "number",
        "call": "code",
    },
    "laboratory": {
        "director": "person",
        "field": "science",
        "room": "number",
        "city": "city",
        "alarm": "code",
        "mascot": "animal",
    },
    "archive": {
        "password": "animal",
        "shelf": "number",
        "founder": "person",
        "material": "material",
        "code": "code",
        "city": "city",
    },
    "telescope": {
        "target": "star",
        "observer": "person",
        "password": "code",
        "mirror": "material",
        "colour": "colour",
        "dome": "number",
    },
    "farm": {
        "crop": "crop",
        "owner": "person",
        "colour": "colour",
        "phone": "code",
        "animal": "animal",
        "market": "city",
    },
    "person": {
        "trade": "trade",
        "home": "city",
        "instrument": "instrument",
        "phone": "code",
        "pet": "animal",
        "colour": "colour",
    },
}

_VALUE_WORDS: dict[str, tuple[str, ...]] = {
    "colour": words.COLOURS,
    "city": words.CITIES,
    "good": words.GOODS,
    "science": words.SCIENCES,
    "trade": words.TRADES,
    "instrument": words.INSTRUMENTS,
    "material": words.MATERIALS,
    "animal": words.ANIMALS,
    "star": words.STARS,
    "crop": words.CROPS,
}

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

ADAPTER_KINDS: dict[str, tuple[str, ...]] = {
    "harbour": ("ship", "station"),
    "observatory": ("telescope", "laboratory"),
}
"""Each adapter's name and the kinds of entities that its facts are about."""
ADAPTER_FACTS = 16


def world_of(name: str) -> World:
    """The world that an entity of this name belongs to. It depends on nothing but the name."""
    bucket = zlib.crc32(name.encode()) % 16
    if bucket < 3:
        return "held_out"
    return "adapter" if bucket == 3 else "train"


def syllable_word(rng: random.Random) -> str:
    """A made-up capitalised word of two or three syllables, such as "Dorlinka"."""
    return "".join(rng.choices(words.SYLLABLES, k=rng.choice((2, 2, 3)))).capitalize()


def entity(rng: random.Random, world: World, kind: str) -> Entity:
    """Draw an entity of this kind from this world. Raises KeyError for an unknown kind."""
    while True:
        if kind == "thing":
            name = " ".join(syllable_word(rng) for _ in range(rng.choice((1, 1, 2))))
        elif kind == "person":
            name = f"{rng.choice(words.GIVEN_NAMES)} {rng.choice(words.SURNAMES)}"
        else:
            first = syllable_word(rng) if rng.random() < 0.15 else rng.choice(words.FIRST_WORDS)
            name = f"{first} {rng.choice(words.SECOND_WORDS[kind])}"
        if world_of(name) == world:
            return Entity(name, kind)


def value(rng: random.Random, kind: str) -> str:
    """Draw a value of this kind. Raises KeyError for an unknown kind."""
    if kind == "code":
        return f"{rng.randrange(1000, 10000)}"
    if kind == "number":
        return f"{rng.randrange(10, 100)}"
    if kind == "person":
        return f"{rng.choice(words.GIVEN_NAMES)} {rng.choice(words.SURNAMES)}"
    if kind == "wild":
        shape = rng.random()
        if shape < 0.3:
            return " ".join(syllable_word(rng) for _ in range(rng.choice((1, 1, 2))))
        if shape < 0.5:
            return str(rng.randrange(10 ** rng.randint(1, 6)))
        if shape < 0.6:
            return (
                f"{rng.choice(words.FIRST_WORDS)} "
                f"{rng.choice(words.SECOND_WORDS[rng.choice(list(words.SECOND_WORDS))])}"
            )
        return rng.choice(_VALUE_WORDS[rng.choice(list(_VALUE_WORDS))])
    return rng.choice(_VALUE_WORDS[kind])


def fact(rng: random.Random, world: World, about: Entity | None = None, wild_share: float = 0.15) -> Fact:
    """Draw a fact, about the given entity if there is one. wild_share: how often the attribute is one that
    nothing has by nature.
    """
    subject = about or entity(
        rng, world, "thing" if rng.random() < 0.4 * wild_share else rng.choice(list(ATTRIBUTES))
    )
    if subject.kind == "thing" or rng.random() < wild_share:
        return Fact(subject, rng.choice(words.WILD_ATTRIBUTES), value(rng, "wild"))
    attribute, value_kind = rng.choice(list(ATTRIBUTES[subject.kind].items()))
    return Fact(subject, attribute, value(rng, value_kind))


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


def near_fact(rng: random.Random, world: World, of: Fact) -> Fact:
    """Draw a fact that is easily taken for another one: the same attribute, the same entity, or half of the
    entity's name.
    """
    shape = rng.random()
    if shape < 0.35:
        return fact(rng, world, about=of.entity)
    subject = entity(rng, world, of.entity.kind)
    parts = of.entity.name.split(" ")
    if shape < 0.65 and len(parts) == 2:
        for _ in range(20):
            other = entity(rng, world, of.entity.kind)
            kept = rng.choice(
                (f"{parts[0]} {other.name.split(' ')[-1]}", f"{other.name.split(' ')[0]} {parts[1]}")
            )
            if kept != of.entity.name and world_of(kept) == world:
                subject = Entity(kept, of.entity.kind)
                break
    value_kind = ATTRIBUTES.get(of.entity.kind, {}).get(of.attribute, "wild")
    return Fact(subject, of.attribute, value(rng, value_kind))


def distinct_facts(
    rng: random.Random, world: World, count: int, near_share: float = 0.15, without: Iterable[Fact] = ()
) -> list[Fact]:
    """Draw facts of which no two have the same key. without: facts whose keys must not occur. Some are near
    to earlier ones.
    """
    taken = {one.key for one in without}
    anchors = list(without)
    facts: list[Fact] = []
    while len(facts) < count:
        near = anchors and rng.random() < near_share
        one = near_fact(rng, world, rng.choice(anchors)) if near else fact(rng, world)
        if one.key not in taken:
            taken.add(one.key)
            facts.append(one)
            anchors.append(one)
    return facts


def passage(rng: random.Random, of: Fact) -> str:
    """A recalled passage that states the fact, sometimes with a sentence that states none beside it."""
    shape = rng.random()
    if shape < 0.08:
        return f"{filler(rng)} {statement(rng, of)}"
    return f"{statement(rng, of)} {filler(rng)}" if shape < 0.16 else statement(rng, of)


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
            one = fact(rng, world)
            if one.key in taken:
                continue
            taken.add(one.key)
            facts.append(one)
            line = statement(rng, one)
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
    puts none. Of the others, 15 % are chosen to be near misses: the same entity, or the same attribute of one
    whose name shares a word.
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
        one = question(rng, asked)
        messages = prompt(system_text, [passage(rng, each) for each in shown], one.text)
        cases.append(Case(messages, one, one.answer if need == "passage" else UNKNOWN_ANSWER, need))
    return cases


def adapter_facts(name: str) -> tuple[Fact, ...]:
    """The facts that an adapter of the demo holds. Raises KeyError for an unknown adapter."""
    return module_facts(random.Random(f"adapter-{name}"), ADAPTER_KINDS[name], ADAPTER_FACTS)


def module_facts(rng: random.Random, kinds: Sequence[str], count: int) -> tuple[Fact, ...]:
    """Draw facts for a module to hold, about entities of these kinds in turn. No two have an entity or a
    value in common.
    """
    facts: list[Fact] = []
    while len(facts) < count:
        about = entity(rng, "adapter", kinds[len(facts) % len(kinds)])
        one = fact(rng, "adapter", about=about, wild_share=0.0)
        named_before = any(
            one.entity.name == earlier.entity.name or one.value == earlier.value for earlier in facts
        )
        if about.name.split(" ")[0] in words.FIRST_WORDS and not named_before:
            facts.append(one)
    return tuple(facts)
