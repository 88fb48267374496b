"""Facts of invented places in plain English, for a model that has learned English: SmolLM2-135M-Instruct."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loadtests.texts.memory_recall.worlds import (
    CHANGED,
    EXPIRED,
    HOP,
    KNOWN,
    NAMESPACE,
    NEAR_MISS,
    NOT_YET,
    UNKNOWN,
    UPDATED,
    Change,
    Question,
    World,
)
from memserve.domain import Link, LinkKind, NewMemory

MODULE = "town"
MODULE_FACTS = 12
OTHERS = 60
# Neither is trained.
FORMS = ("{q}", "Could you help me? {q}")
DAY_S = 86_400.0

NAMES = ("Halden", "Korvin", "Selby", "Tarn", "Ostra", "Belmar", "Juniper", "Brenna", "Lindow", "Marek")
KINDS = ("bakery", "library", "workshop", "hotel", "museum", "garage", "school", "clinic")
PEOPLE = (
    "Ines Okafor", "Ruth Adeyemi", "Aldo Ferri", "Mara Novak", "Sven Dahl", "Priya Raman", "Omar Haddad",
    "Lena Vogt", "Tomas Silva", "Helga Brandt", "Nadia Petrov", "Viktor Lang",
)  # fmt: skip
STREETS = ("Mill", "Harbour", "Cedar", "Station", "Abbey", "Orchard", "Bridge", "Tanner", "Chapel", "Quarry")
DOGS = ("Pepper", "Walrus", "Biscuit", "Comet", "Fennel", "Marble", "Otis", "Ziggy", "Poppy", "Rollo")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
COLOURS = ("red", "green", "yellow", "purple", "orange", "black", "white", "turquoise", "brown", "pink")


# A cause, and the word of it that an answer has. None has a word of the question.
CAUSES = (
    ("A water pipe burst in the cellar.", "pipe"),
    ("The boiler broke during the night.", "boiler"),
    ("A storm took tiles off the roof.", "storm"),
    ("The lift failed its inspection.", "lift"),
    ("Rats were seen near the stairs.", "rats"),
    ("The chimney caught fire.", "fire"),
    ("The heating oil ran out.", "oil"),
    ("A tree fell on the fence.", "tree"),
)


@dataclass(frozen=True, slots=True)
class Relation:
    """Something that a place has."""

    statement: str
    questions: tuple[str, ...]
    """The last one is asked. A module is trained on the others."""
    values: tuple[str, ...]


RELATIONS = (
    Relation(
        "The {e} is led by {v}.",
        ("Who leads the {e}?", "Who is the leader of the {e}?", "By whom is the {e} led?"),
        PEOPLE,
    ),
    Relation(
        "The door code of the {e} is {v}.",
        (
            "What is the door code of the {e}?",
            "Tell me the door code of the {e}.",
            "Which door code has the {e}?",
        ),
        tuple(str(number) for number in range(1017, 9999, 331)),
    ),
    Relation(
        "The {e} opens at {v}.",
        (
            "When does the {e} open?",
            "What is the opening time of the {e}?",
            "At what time does the {e} open?",
        ),
        tuple(f"{hour}:{minute}" for hour in range(6, 12) for minute in (15, 30, 45)),
    ),
    Relation(
        "The {e} is in {v} Street.",
        (
            "In which street is the {e}?",
            "What is the street of the {e}?",
            "Which street is the {e} in?",
        ),
        STREETS,
    ),
    Relation(
        "The dog of the {e} is called {v}.",
        (
            "What is the dog of the {e} called?",
            "Tell me the name of the dog of the {e}.",
            "What is the name of the dog of the {e}?",
        ),
        DOGS,
    ),
    Relation(
        "The {e} is closed on {v}.",
        ("When is the {e} closed?", "Which day is the {e} closed?", "On which day is the {e} closed?"),
        DAYS,
    ),
    Relation(
        "The front door of the {e} is {v}.",
        (
            "Which colour is the front door of the {e}?",
            "What is the colour of the front door of the {e}?",
            "What colour is the front door of the {e}?",
        ),
        COLOURS,
    ),
    Relation(
        "The {e} has {v} rooms.",
        (
            "How many rooms has the {e}?",
            "What number of rooms has the {e}?",
            "How many rooms does the {e} have?",
        ),
        tuple(str(number) for number in range(13, 97, 7)),
    ),
    Relation(
        "The {e} was built in {v}.",
        ("When was the {e} built?", "What year was the {e} built?", "In which year was the {e} built?"),
        tuple(str(year) for year in range(1803, 1990, 17)),
    ),
)


@dataclass(frozen=True, slots=True)
class PlainFact:
    """What a place has."""

    place: str
    relation: Relation
    value: str

    @property
    def memory_id(self) -> str:
        return f"{self.place}-{RELATIONS.index(self.relation)}".replace(" ", "-").lower()

    @property
    def text(self) -> str:
        return self.relation.statement.format(e=self.place, v=self.value)

    def question(self, number: int = -1) -> str:
        """number: of the relation's phrasings. The last one is asked."""
        return self.relation.questions[number].format(e=self.place)


def plain_facts(seed: int, count: int) -> list[PlainFact]:
    """Different facts: at most two of a place, values as they come. The first are those of the module."""
    rng = random.Random(f"memory-recall-plain-{seed}")
    places = [f"{name} {kind}" for name, kind in itertools.product(NAMES, KINDS)]
    rng.shuffle(places)
    pairs = [(place, RELATIONS[(at + turn * 4) % len(RELATIONS)]) for turn in range(2)
             for at, place in enumerate(places)]  # fmt: skip
    if count > len(pairs):
        raise ValueError(f"there are {len(pairs)} facts, not {count}")
    return [PlainFact(place, relation, rng.choice(relation.values)) for place, relation in pairs[:count]]


def module_facts(seed: int) -> list[PlainFact]:
    """The facts that a module is taught."""
    return plain_facts(seed, MODULE_FACTS)


def plain_world(modules: Mapping[str, Path], *, seed: int, questions: int, forms: int = len(FORMS)) -> World:
    """modules: the folder of the taught module, or empty.

    questions: how many that changed, and of each kind that has no answer. The known facts are those that the
    module is taught, each asked in so many of FORMS.
    """
    rng = random.Random(f"memory-recall-plain-world-{seed}")
    every = plain_facts(seed, MODULE_FACTS + OTHERS)
    known, changing = every[:MODULE_FACTS], every[MODULE_FACTS + OTHERS - questions :]
    memories = [NewMemory(NAMESPACE, fact.text, "generated", memory_id=fact.memory_id) for fact in every]
    rng.shuffle(memories)
    asked = [
        Question(form.format(q=fact.question()), fact.value, KNOWN, fact.memory_id, MODULE if modules else "")
        for form in FORMS[:forms]
        for fact in known
    ]
    changes = [_change(rng, fact, CHANGED[at % len(CHANGED)]) for at, fact in enumerate(changing)]
    for change, fact in zip(changes, changing, strict=True):
        stays = change.kind in (EXPIRED, NOT_YET)
        value = fact.value if stays else str(change.later.metadata["value"])
        right = fact.memory_id if stays else change.later.memory_id
        asked.append(Question(fact.question(), value, change.kind, right))
    told = {(fact.place, fact.relation) for fact in every}
    places = sorted({fact.place for fact in every})
    spare = sorted({f"{name} {kind}" for name in NAMES for kind in KINDS} - set(places)) or ["Quill mill"]
    for at in range(questions):
        nowhere = PlainFact(spare[at % len(spare)], RELATIONS[at % len(RELATIONS)], "")
        asked.append(Question(nowhere.question(), "", UNKNOWN))
        lacking = [one for one in RELATIONS if (places[at % len(places)], one) not in told]
        near = PlainFact(places[at % len(places)], rng.choice(lacking), "")
        asked.append(Question(near.question(), "", NEAR_MISS))
    for at, (cause, answer) in enumerate(CAUSES):
        place, closed = places[-1 - at], f"closed-{at}"
        memories.append(NewMemory(NAMESPACE, cause, "generated", memory_id=f"cause-{at}"))
        links = (Link(LinkKind.CAUSED_BY, f"cause-{at}"),)
        text = f"The {place} could not open yesterday."
        memories.append(NewMemory(NAMESPACE, text, "generated", memory_id=closed, links=links))
        asked.append(Question(f"Why could the {place} not open yesterday?", answer, HOP, f"cause-{at}"))
    return World("SmolLM2-135M-Instruct", tuple(memories), tuple(changes), tuple(asked), dict(modules))


def _change(rng: random.Random, fact: PlainFact, kind: str) -> Change:
    value = rng.choice([one for one in fact.relation.values if one != fact.value])
    later = PlainFact(fact.place, fact.relation, value)
    now_s = time.time()
    return Change(
        kind,
        fact.memory_id,
        NewMemory(
            NAMESPACE,
            later.text,
            "generated",
            memory_id=fact.memory_id if kind == UPDATED else f"{fact.memory_id}-later",
            metadata={"value": value},
            valid_from_s=now_s + 30 * DAY_S if kind == NOT_YET else None,
            valid_until_s=now_s - DAY_S if kind == EXPIRED else None,
        ),
    )
