"""The phrasings of questions and statements. Those that are held out are asked at the gate, never trained.

`{e}` is the subject, `{E}` the same at the beginning of a sentence, `{a}` the attribute, `{v}` the value.
"""

from __future__ import annotations

import re

from memserve.policy.modules.self_study.readings import Form, Reading

TRAINED: dict[Form, tuple[str, ...]] = {
    Form.ATTRIBUTE: (
        "What is the {a} of {e}?",
        "Which {a} does {e} have?",
        "Tell me the {a} of {e}.",
        "Do you know the {a} of {e}?",
        "{E}: what is the {a}?",
        "Please give the {a} of {e}.",
        "What {a} has {e}?",
        "I need the {a} of {e}.",
        "As for {e}, tell me the {a}.",
        "About {e}: which {a}?",
        "{E}, what {a} is it?",
        "Regarding {e}, what may the {a} be?",
        "Name the {a} of {e}, please.",
        "What is {e}'s {a}?",
        "Who or what is the {a} of {e}?",
        "Remind me of the {a} of {e}.",
        "Can you tell me the {a} of {e}?",
        "Could you give me {e}'s {a}?",
        "Say the {a} of {e}.",
        "Of {e}, what is the {a}?",
        "For {e}, give the {a}.",
        "What do you know about the {a} of {e}?",
        "I would like to know the {a} of {e}.",
        "The {a} of {e}, what is it?",
        "{E} has which {a}?",
        "Can you recall which {a} {e} has?",
        "Look up the {a} of {e}.",
        "State {e}'s {a}.",
        "When it comes to {e}, what is the {a}?",
        "Could you name {e}'s {a}?",
        "Say which {a} {e} has.",
        "May I ask for the {a} of {e}?",
    ),
    Form.RELATION: (
        "{E} {a} what?",
        "Tell me: {e} {a} what?",
        "Please complete: {E} {a}",
        "How does this go on: {E} {a}",
        "{E} {a} whom or what?",
        "Do you know what {e} {a}?",
    ),
    Form.CLOZE: (
        "Please complete: {a}",
        "How does this go on: {a}",
        "Finish the sentence: {a}",
        "What comes next? {a}",
    ),
}
PASSIVE_TRAINED = (
    "{wh} {be} {e} {verb}?",
    "Tell me {wh_small} {e} {be} {verb}.",
    "Do you know {wh_small} {e} {be} {verb}?",
)
"""Of a relation with "is" or "was", besides the others."""

HELD_OUT: dict[Form, tuple[str, ...]] = {
    Form.ATTRIBUTE: (
        "Can you name the {a} of {e}?",
        "Say what the {a} of {e} is.",
        "For {e}, what is the {a}?",
    ),
    Form.RELATION: (
        "Fill the gap: {E} {a} ___.",
        "What do you know: {e} {a} what?",
        "Say how this ends: {E} {a}",
    ),
    Form.CLOZE: (
        "Fill the gap: {a} ___.",
        "Say how this ends: {a}",
    ),
}
PASSIVE_HELD_OUT = ("Can you say {wh_small} {e} {be} {verb}?",)

STATEMENTS = (
    "The {a} of {e} is {v}.",
    "{E} has the {a} {v}.",
    "Records say that the {a} of {e} is {v}.",
    "Note: the {a} of {e} is {v}.",
    "As of today the {a} of {e} is {v}.",
    "For {e}, the {a} is {v}.",
)

_BY_PREPOSITION = {"by": "Who", "in": "Where", "at": "Where", "on": "Where", "near": "Where", "since": "When"}
_TIME = re.compile(
    r"^(?:\d{4}|(?:mon|tues|wednes|thurs|fri|satur|sun)day\w*|\d{1,2}(?::\d\d)?(?: ?[ap]m)?|noon|midnight|"
    r"(?:january|february|march|april|may|june|july|august|september|october|november|december)\b.*)$",
    re.IGNORECASE,
)
_PASSIVE = re.compile(r"^(?P<be>is|are|was|were) (?P<verb>.+) (?P<prep>\S+)$")


def questions(reading: Reading, *, held_out: bool = False, most: int | None = None) -> list[str]:
    """Questions for the reading's value, in a fixed order.

    most: of those that are not held out.
    """
    phrasings = (HELD_OUT if held_out else TRAINED)[reading.form]
    parts = _parts(reading)
    if "wh" in parts:
        phrasings = (*phrasings, *(PASSIVE_HELD_OUT if held_out else PASSIVE_TRAINED))
    return [phrasing.format_map(parts) for phrasing in phrasings[: None if held_out else most]]


def statements(subject: str, attribute: str, value: str) -> list[str]:
    """A fact of the attribute form, in every form of a statement."""
    parts = {"e": subject, "E": _capital(subject), "a": attribute, "v": value}
    return [form.format_map(parts) for form in STATEMENTS]


def with_value(reading: Reading, value: str) -> str:
    """The reading's own sentence with another value. It may stand in the subject's name too."""
    if not reading.sentence.endswith(f"{reading.value}.") and reading.sentence.startswith(
        f"{reading.value} "
    ):
        return value + reading.sentence[len(reading.value) :]
    before, _, after = reading.sentence.rpartition(reading.value)
    return f"{before}{value}{after}"


def _parts(reading: Reading) -> dict[str, str]:
    subject = reading.subject
    parts = {"e": subject, "E": _capital(subject), "a": reading.attribute, "v": reading.value}
    passive = _PASSIVE.match(reading.attribute) if reading.form is Form.RELATION else None
    if passive is not None:
        preposition = passive["prep"]
        word = "When" if _TIME.match(reading.value) else _BY_PREPOSITION.get(preposition, "What")
        verb = passive["verb"] if word in ("Where", "When") else f"{passive['verb']} {preposition}"
        parts |= {"wh": word, "wh_small": word.lower(), "be": passive["be"], "verb": verb}
    return parts


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
