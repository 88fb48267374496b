"""Subjects that no memory names, values that no memory states, and questions of general knowledge."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from memserve.policy.modules.self_study.draw import Draw

_SYLLABLES = (
    "bar", "bel", "cor", "dal", "den", "dor", "fel", "gar", "hal", "jor", "kal", "lin", "lor", "mar", "mel",
    "nor", "oster", "pel", "quin", "ran", "ros", "sal", "sten", "tar", "tol", "ul", "van", "vel", "wes",
    "zan",
)  # fmt: skip
_ENDINGS = ("a", "o", "ia", "en", "is", "um", "by", "ton", "mar", "wick", "dale", "sk", "ford", "ra")
_GIVEN = (
    "Alba", "Bruno", "Clara", "Dario", "Edith", "Felix", "Greta", "Hugo", "Irene", "Jonas", "Karla", "Leon",
    "Mona", "Nils", "Olga", "Pavel", "Rosa", "Simon", "Thea", "Ugo", "Vera", "Walter",
)  # fmt: skip
_SURNAMES = (
    "Adler", "Baker", "Cortez", "Dahl", "Ferris", "Garner", "Hansen", "Ibsen", "Jansen", "Keller", "Lopez",
    "Moreau", "Novak", "Olsen", "Parker", "Quinn", "Rossi", "Silva", "Turner", "Vogel", "Weber", "Young",
)  # fmt: skip
_PLACES = (
    "Amsterdam", "Bergen", "Cairo", "Dublin", "Geneva", "Hamburg", "Krakow", "Lima", "Madrid", "Naples",
    "Oslo", "Porto", "Riga", "Seville", "Turin", "Vienna", "Warsaw", "York", "Zurich", "Quebec",
)  # fmt: skip
_FIRST_WORDS = (
    "Amber", "Ashen", "Birch", "Black", "Bright", "Cedar", "Copper", "Eastern", "Golden", "Grey", "Hidden",
    "Iron", "Ivory", "Lower", "Maple", "Old", "Quiet", "Red", "River", "Royal", "Silent", "Stone", "Upper",
    "White", "Wild", "Winter",
)  # fmt: skip
_LAST_WORDS = (
    "Bridge", "Chapel", "Garden", "Hall", "Harbour", "House", "Inn", "Lodge", "Market", "Mill", "Museum",
    "Press", "Railway", "School", "Theatre", "Tower", "Trust", "Works",
)  # fmt: skip
_NOUNS = (
    "amber", "badger", "barley", "blue", "brass", "cello", "copper", "cotton", "crane", "eagle", "flint",
    "glass", "green", "heron", "honey", "ivory", "lemon", "maple", "oak", "otter", "paper", "purple", "rye",
    "salt", "silk", "slate", "tea", "violet", "walnut", "wool", "yellow",
)  # fmt: skip
ATTRIBUTES = (
    "colour", "founder", "owner", "phone", "motto", "dentist", "anthem", "budget", "mascot", "gardener",
    "neighbour", "insurance", "password", "birthday", "sponsor", "address", "size", "age", "cook", "flag",
)  # fmt: skip
"""Of questions about what no memory states."""
FILLERS = (
    "Doors are closed at night.",
    "Lamps are counted on Fridays.",
    "The weather was mild that week.",
    "Visitors are asked to sign the book.",
    "A copy of this note hangs beside the entrance.",
    "Lunch is served at noon.",
)

GENERAL: tuple[tuple[str, str], ...] = (
    ("What is the capital of France?", "Paris"),
    ("How many days are in a week?", "seven"),
    ("What colour is a clear sky?", "blue"),
    ("Who wrote Hamlet?", "Shakespeare"),
    ("What do bees make?", "honey"),
    ("What is the opposite of hot?", "cold"),
    ("How many legs has a spider?", "eight"),
    ("Which planet is nearest to the sun?", "Mercury"),
    ("What is frozen water called?", "ice"),
    ("What is two plus three?", "five"),
    ("In which country is Rome?", "Italy"),
    ("What do cows drink?", "water"),
    ("What is the capital of Japan?", "Tokyo"),
    ("Which ocean is the largest?", "Pacific"),
    ("What is the chemical symbol of gold?", "Au"),
    ("How many months are in a year?", "twelve"),
    ("What language is spoken in Brazil?", "Portuguese"),
    ("Who painted the Mona Lisa?", "Leonardo"),
    ("What is the freezing point of water in Celsius?", "0"),
    ("Which animal barks?", "dog"),
    ("What gas do plants take in?", "carbon"),
    ("What is the largest planet?", "Jupiter"),
    ("How many sides has a triangle?", "three"),
    ("What is the capital of Germany?", "Berlin"),
    ("Which season comes after winter?", "spring"),
    ("What is the main ingredient of bread?", "flour"),
    ("What do you call a baby cat?", "kitten"),
    ("Which organ pumps blood?", "heart"),
    ("What is the tallest mountain on earth?", "Everest"),
    ("How many minutes are in an hour?", "60"),
    ("What is the capital of Spain?", "Madrid"),
    ("Which metal is liquid at room temperature?", "mercury"),
    ("What is the opposite of day?", "night"),
    ("Which planet has rings?", "Saturn"),
    ("What is the currency of the United States?", "dollar"),
    ("What do caterpillars turn into?", "butterfl"),
    ("Who discovered gravity under an apple tree?", "Newton"),
    ("What is the capital of Egypt?", "Cairo"),
    ("What is the colour of grass?", "green"),
    ("Which continent is Kenya in?", "Africa"),
    ("What instrument has black and white keys?", "piano"),
    ("What is the largest animal in the sea?", "whale"),
    ("Which star is at the centre of the solar system?", "Sun"),
    ("What is ten minus four?", "six"),
    ("What do we breathe?", "air"),
    ("Which country is known for pyramids?", "Egypt"),
    ("What is the capital of Greece?", "Athens"),
    ("How many hours are in a day?", "24"),
)  # fmt: skip
"""Questions and a word of a right answer. Those at even places are trained on, the others are asked at the
gate."""

_NUMBER = re.compile(r"\d")
_GENERIC = frozenset(("the", "a", "an", "of", "and", "in", "at", "on", "for", "to", "de", "la"))


@dataclass(frozen=True, slots=True)
class Lexicon:
    """Words that the served model knows as one token each.

    Names that are only made of syllables are told from the memories' names by their many tokens alone.
    """

    names: tuple[str, ...] = ()
    """With a capital letter."""
    nouns: tuple[str, ...] = ()
    """In small letters."""


NO_WORDS = Lexicon()
WORD_SHARE = 0.7
"""How many of the made-up words are of the lexicon, where it has any."""


def name(draw: Draw, lexicon: Lexicon = NO_WORDS) -> str:
    """A made-up name of one word."""
    if lexicon.names and draw.chance(WORD_SHARE):
        return draw.choice(lexicon.names)
    return (draw.choice(_SYLLABLES) + draw.choice(_ENDINGS)).capitalize()


def _noun(draw: Draw, lexicon: Lexicon) -> str:
    return draw.choice(lexicon.nouns if lexicon.nouns and draw.chance(WORD_SHARE) else _NOUNS)


def subject(draw: Draw, lexicon: Lexicon = NO_WORDS) -> str:
    """Of a thing or a person that is like nothing in particular."""
    if draw.chance(0.35):
        return f"{draw.choice(_GIVEN)} {draw.choice(_SURNAMES)}"
    first = draw.choice(_FIRST_WORDS) if draw.chance(0.4) else name(draw, lexicon)
    last = name(draw, lexicon) if lexicon.names and draw.chance(0.5) else draw.choice(_LAST_WORDS)
    made = f"{first} {last}"
    return f"the {made}" if draw.chance(0.3) else made


def any_value(draw: Draw, lexicon: Lexicon = NO_WORDS) -> str:
    """A value of any sort."""
    sort = draw.below(5)
    if sort == 0:
        return f"{1000 + draw.below(9000)}"
    if sort == 1:
        return f"{10 + draw.below(90)}"
    if sort == 2:
        return f"{draw.choice(_GIVEN)} {draw.choice(_SURNAMES)}"
    return draw.choice(_PLACES) if sort == 3 else _noun(draw, lexicon)


def other_subject(
    draw: Draw,
    like: str,
    subjects: Sequence[str],
    taken: Collection[str],
    lexicon: Lexicon = NO_WORDS,
) -> str:
    """A subject that is like the given one and that no memory names.

    Half of them have a made-up name in place of one, or in place of the whole; the others are put together
    of two subjects that memories do name. taken: in small letters, what must not come out.
    """
    for _ in range(16):
        if draw.chance(0.4):
            made = _mixed(draw, like, draw.choice(subjects), lexicon)
        else:
            made = _renamed(draw, like, lexicon)
        if made.casefold() not in taken and made != like:
            return made
    return subject(draw, lexicon)


def _renamed(draw: Draw, like: str, lexicon: Lexicon) -> str:
    words = like.split()
    names = [place for place, word in enumerate(words) if word[0].isupper()]
    if not names:
        return f"{like} of {name(draw, lexicon)}"
    person = len(names) == len(words) == 2 and words[0] in _GIVEN
    for place in names[:1] if len(names) > 1 and draw.chance(0.6) else draw.sample(names, 1):
        if person:
            words[place] = draw.choice(_GIVEN if place == 0 else _SURNAMES)
        else:
            plain = place == 0 and draw.chance(0.3)
            words[place] = draw.choice(_FIRST_WORDS) if plain else name(draw, lexicon)
    return " ".join(words)


def _mixed(draw: Draw, like: str, other: str, lexicon: Lexicon) -> str:
    words, others = like.split(), other.split()
    if len(words) < 2 or len(others) != len(words):
        return _renamed(draw, like, lexicon)
    if draw.chance(0.5):
        words, others = others, words
    return " ".join([*words[:-1], others[-1]])


def other_value(draw: Draw, value: str, values: Sequence[str], lexicon: Lexicon = NO_WORDS) -> str:
    """A value of the same sort that differs: of the digits, of a name, or another memory's."""
    if _NUMBER.search(value):
        return _other_number(draw, value)
    alike = [
        other
        for other in values
        if other != value
        and other[:1].isupper() == value[:1].isupper()
        and len(other.split()) == len(value.split())
        and not _NUMBER.search(other)
    ]
    if alike and draw.chance(0.7):
        return draw.choice(alike)
    if value[:1].isupper():
        words = value.split()
        if len(words) == 2:
            if lexicon.names and draw.chance(WORD_SHARE):
                return f"{draw.choice(lexicon.names)} {draw.choice(lexicon.names)}"
            return f"{draw.choice(_GIVEN)} {draw.choice(_SURNAMES)}"
        return " ".join(word if word.casefold() in _GENERIC else draw.choice(_PLACES) for word in words)
    return draw.choice(alike) if alike and draw.chance(0.5) else _noun(draw, lexicon)


def _other_number(draw: Draw, value: str) -> str:
    for _ in range(16):
        first = True
        digits = []
        for letter in value:
            if letter.isdecimal():
                digits.append(str(1 + draw.below(9)) if first else str(draw.below(10)))
                first = False
            else:
                digits.append(letter)
                first = first or letter == " "
        made = "".join(digits)
        if made != value:
            return made
    return f"{value}{1 + draw.below(9)}"
