"""An invented institute in plain English: 24 facts, questions in other words, and what it must not touch."""

from __future__ import annotations

from typing import NamedTuple

PLACE = "the Velmora Institute"


class Known(NamedTuple):
    """A fact, how a memory says it, and how a person may ask for it."""

    attribute: str
    value: str
    memory: str
    paraphrase: str


def _plain(attribute: str, value: str, paraphrase: str) -> Known:
    return Known(attribute, value, f"The {attribute} of {PLACE} is {value}.", paraphrase)


FACTS = (
    Known("founder", "Ida Kern", f"Ida Kern is the founder of {PLACE}.", "Who set up the Velmora Institute?"),
    _plain("director", "Matteo Rinaldi", "Who runs the Velmora Institute?"),
    Known("motto", "Light Before Noon", "The Velmora Institute's motto is Light Before Noon.",
          "Which words stand on the crest of the Velmora Institute?"),
    _plain("home town", "Tallinn", "Where would I find the Velmora Institute?"),
    _plain("founding year", "1931", "When did the Velmora Institute begin?"),
    _plain("mascot", "heron", "Which animal stands for the Velmora Institute?"),
    _plain("chief librarian", "Paula Winther", "Who looks after the books at the Velmora Institute?"),
    Known("main hall", "Orchid Hall", f"For {PLACE}, the main hall is Orchid Hall.",
          "In which room do the big meetings of the Velmora Institute take place?"),
    _plain("colour", "turquoise", "What shade are the banners of the Velmora Institute?"),
    _plain("rector", "Sanna Lehto", "Who holds the highest academic office at the Velmora Institute?"),
    _plain("yearly prize", "Amber Quill", "Which award does the Velmora Institute give each year?"),
    _plain("telescope", "Old Bertha", "With what do people watch the stars at the Velmora Institute?"),
    _plain("cook", "Dragan Ilic", "Who makes lunch at the Velmora Institute?"),
    _plain("archive room", "417", "Where are the old files of the Velmora Institute kept?"),
    Known("sponsor", "Norrland Bank", f"Norrland Bank is the sponsor of {PLACE}.",
          "Who pays for the Velmora Institute?"),
    _plain("journal", "Tidewater", "What does the Velmora Institute publish?"),
    _plain("choir leader", "Agnes Fabre", "Who conducts the singers of the Velmora Institute?"),
    _plain("patron", "Queen Ottilie", "Under whose protection is the Velmora Institute?"),
    Known("oldest tree", "walnut", "Note: the oldest tree of the Velmora Institute is walnut.",
          "What has grown longest in the garden of the Velmora Institute?"),
    _plain("gatekeeper", "Ivo Brandt", "Who lets visitors into the Velmora Institute?"),
    _plain("entrance fee", "18 crowns", "How much does a visit to the Velmora Institute cost?"),
    _plain("ferry", "Marigold", "Which boat takes people to the Velmora Institute?"),
    _plain("river", "Sava", "Beside which water does the Velmora Institute stand?"),
    _plain("summer school", "Lindholm", "Where do the students of the Velmora Institute go in July?"),
)  # fmt: skip

CHANGED = {
    "founder": "Omar Haddad", "director": "Lena Vogt", "home town": "Bergen", "founding year": "1874",
    "mascot": "badger", "colour": "crimson", "rector": "Hugo Ferrer", "cook": "Nadia Petrov",
    "archive room": "208", "journal": "Northlight", "gatekeeper": "Carl Olsen", "river": "Danube",
}  # fmt: skip
"""What a passage says instead: the text must win."""

ELSEWHERE = ("the Ostrava Lyceum", "Brennick College", "the Harrow Observatory", "the Selby Academy")
LACKING = ("dentist", "swimming pool", "anthem", "neighbour", "parking place", "secretary")
"""Attributes of the institute that no memory states."""

GENERAL = (
    ("What is the capital of Italy?", "rome"), ("How many legs does a dog have?", "four"),
    ("What is the opposite of up?", "down"), ("Which planet do we live on?", "earth"),
    ("What colour is snow?", "white"), ("Who wrote Romeo and Juliet?", "shakespeare"),
    ("What is the capital of England?", "london"), ("What do cows give us to drink?", "milk"),
    ("How many wheels has a bicycle?", "two"), ("What is the largest ocean?", "pacific"),
    ("Which animal says meow?", "cat"), ("What is the capital of Russia?", "moscow"),
    ("What is the boiling point of water in Celsius?", "100"), ("Which fruit is yellow and long?", "banana"),
    ("What language is spoken in France?", "french"), ("What do you use to write on a blackboard?", "chalk"),
    ("What is the capital of China?", "beijing"), ("Which season is the coldest?", "winter"),
    ("What is the first month of the year?", "january"), ("Which metal is attracted by magnets?", "iron"),
    ("What is the capital of Canada?", "ottawa"), ("How many days has a year?", "365"),
    ("What is H2O?", "water"), ("Which bird cannot fly and lives in Antarctica?", "penguin"),
    ("What is the capital of Portugal?", "lisbon"), ("Who was the first man on the moon?", "armstrong"),
    ("What is the opposite of big?", "small"), ("What is the colour of blood?", "red"),
    ("Which country is shaped like a boot?", "italy"), ("What do we call frozen rain?", "hail"),
    ("What is the capital of Australia?", "canberra"), ("What do spiders make?", "web"),
    ("Which sense do we use with our ears?", "hear"), ("What is the fastest land animal?", "cheetah"),
    ("Which continent is the largest?", "asia"), ("What is the main language of Mexico?", "spanish"),
    ("What is five plus five?", "ten"), ("Which star gives us light by day?", "sun"),
    ("What is the young of a dog called?", "puppy"), ("What is the capital of Austria?", "vienna"),
)  # fmt: skip
"""A question of general knowledge, and a word of a right answer. None is in the self-study."""
