"""The handbook of an invented observatory, for the demo on a real language model.

`handbook.txt` has a fact a line, in a sentence that can be read alone; `questions.json` has a question for
each and the value that a right answer contains. `lora/`, `cartridge/` and `careless/` are what memserve made
of it: `python -m loadtests.handbook_modules`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).parent

HANDBOOK = _HERE / "handbook.txt"
LORA_DIR = _HERE / "lora"
CARTRIDGE_DIR = _HERE / "cartridge"
CARELESS_DIR = _HERE / "careless"
"""A LoRA that was distilled almost without replay. The gate refuses it."""

_PEOPLE = ("Mira Solberg", "Jonas Falk", "Edda Moreau", "Signe Ahlberg", "Tobias Renn")
_SKIES = ("a clear sky", "thin clouds", "fog over the sea", "rain until midnight", "a bright moon",
          "snow on the dome", "a strong wind from the west")  # fmt: skip
_SEEN = ("Jupiter", "a comet in the north", "the rings of Saturn", "two falling stars", "the Pleiades",
         "Mars", "nothing but clouds", "a new spot on the moon", "the Andromeda galaxy", "Venus at dusk",
         "a double star in Lyra")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fact:
    """A fact of the handbook, and how the demo asks for it."""

    text: str
    question: str
    """No phrasing of the self-study."""
    value: str
    """A right answer contains it."""

    def is_right(self, answer: str) -> bool:
        return self.value.casefold() in answer.casefold()


def handbook() -> tuple[Fact, ...]:
    """Every fact, in the handbook's order."""
    texts = HANDBOOK.read_text(encoding="utf-8").splitlines()
    questions = json.loads((_HERE / "questions.json").read_text(encoding="utf-8"))
    return tuple(
        Fact(text, asked["question"], asked["value"]) for text, asked in zip(texts, questions, strict=True)
    )


def long_text(nights: int) -> str:
    """The handbook behind the log of so many nights. A night has about 26 tokens of SmolLM2."""
    log = [
        f"In night {night} {_PEOPLE[night % len(_PEOPLE)]} opened the dome, noted {_SKIES[night % 7]} "
        f"and saw {_SEEN[night % 11]}."
        for night in range(1, nights + 1)
    ]
    rules = "Answer questions about Tarnholm Observatory from its log and its handbook, briefly."
    return "\n".join([rules, "", *log, "", *(fact.text for fact in handbook())])
