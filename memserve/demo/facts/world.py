"""Drawing entities and facts from a seed.

The names of entities are split by a checksum into three worlds that never meet: one for training, one held
out for evaluation, one for the adapters.
"""

import random
import zlib
from collections.abc import Iterable, Sequence

from memserve.demo import words
from memserve.demo.facts.values import Entity, Fact, World

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
    taken = {other.key for other in without}
    anchors = list(without)
    facts: list[Fact] = []
    while len(facts) < count:
        near = anchors and rng.random() < near_share
        drawn = near_fact(rng, world, rng.choice(anchors)) if near else fact(rng, world)
        if drawn.key not in taken:
            taken.add(drawn.key)
            facts.append(drawn)
            anchors.append(drawn)
    return facts


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
        drawn = fact(rng, "adapter", about=about, wild_share=0.0)
        named_before = any(
            drawn.entity.name == earlier.entity.name or drawn.value == earlier.value for earlier in facts
        )
        if about.name.split(" ")[0] in words.FIRST_WORDS and not named_before:
            facts.append(drawn)
    return tuple(facts)
