"""Texts that stand nowhere else, and what to look for in files: the text, its words, in several spellings."""

from __future__ import annotations

import json
import random
import string
from dataclasses import dataclass

CONSONANTS = "bdfgklmnprstvz"
VOWELS = "aeiou"


@dataclass(frozen=True, slots=True)
class Secret:
    """What a memory says, in its fields, and in the version after."""

    text: str
    later_text: str
    contradiction: str
    """Of another memory."""
    keyword: str
    source: str
    value: str
    """Of its metadata."""
    title: str
    """Of its place."""

    @property
    def words(self) -> tuple[str, ...]:
        """Words that nothing else has."""
        texts = (
            self.text,
            self.later_text,
            self.contradiction,
            self.keyword,
            self.source,
            self.value,
            self.title,
        )
        return tuple(dict.fromkeys(word.strip(".") for text in texts for word in text.split() if _rare(word)))

    @property
    def needles(self) -> dict[str, bytes]:
        """By what they are."""
        found: dict[str, bytes] = {}
        for name, text in (("text", self.text), ("later text", self.later_text)):
            escaped = json.dumps(text)[1:-1]
            for spelling, spelled in (
                ("UTF-8", text),
                ("UTF-8, lower case", text.lower()),
                ("JSON", escaped),
            ):
                found[f"{name} in {spelling}"] = spelled.encode()
            for encoding in ("utf-16-le", "utf-16-be"):
                found[f"{name} in {encoding}"] = text.encode(encoding)
        for word in self.words:
            found[f"word {word!r}"] = word.encode()
            found[f"word {word!r} in UTF-16"] = word.encode("utf-16-le")
        return found


def draw_secret(draw: random.Random) -> Secret:
    def word() -> str:
        body = "".join(draw.choice(CONSONANTS) + draw.choice(VOWELS) for _ in range(4))
        return f"qx{body}{''.join(draw.choices(string.digits, k=4))}"

    ship, captain = word(), word()
    return Secret(
        text=f"The captain of the {ship} in Überlingen 港口 is {captain}.",
        later_text=f"The captain of the {ship} in Überlingen 港口 is {word()}.",
        contradiction=f"The captain of the {ship} in Überlingen 港口 is {word()}.",
        keyword=word(),
        source=word(),
        value=word(),
        title=word(),
    )


def _rare(word: str) -> bool:
    return word.startswith("qx")
