"""What a query looks for: terms, each a word with the other forms that may stand for it."""

from __future__ import annotations

from dataclasses import dataclass


class FormWeight:
    """How much it counts that a text has this form of a word that was asked for."""

    WHOLE = 1.0
    UNACCENTED = 0.95
    UNPREFIXED = 0.9
    """Without an article or another small word that is written together with it."""
    STEM = 0.75
    PART_OF_COMPOUND = 0.6
    """Of as many letters as the word. A shorter part counts less, by its share of the letters."""


@dataclass(frozen=True, slots=True)
class Term:
    """One thing that a query asks for. It is found when a text has one of its forms; the best one counts."""

    forms: tuple[tuple[str, float], ...]
    """[n] words with their FormWeight: first the word as it is written."""
    weight: float = 1.0
    """In a query, beside the other terms."""
    is_code: bool = False
    """Whether it is the whole of a code or number, which names one thing exactly."""

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(word for word, _ in self.forms)
