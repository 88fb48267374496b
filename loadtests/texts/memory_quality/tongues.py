"""What the questions are generated from: names, values and sentences in seven languages and six scripts.

A relation has statements, questions that share its words (`direct`), and questions in other words
(`paraphrases`). The questions of even numbers are for fitting, those of odd numbers are held out.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Relation:
    """Something that a name has one value of."""

    values: str
    """Which of a tongue's values, or `code`, `number`, `date`, `time`."""
    statements: tuple[str, ...]
    """With {e} for the name and {v} for the value."""
    direct: tuple[str, ...]
    paraphrases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tongue:
    """One language."""

    name: str
    first: tuple[str, ...]
    """First parts of names. Any goes with any second part, so that names are near each other."""
    second: tuple[str, ...]
    joint: str
    date: str
    """As `strftime` takes it."""
    asked_date: str
    """In another spelling."""
    relations: tuple[Relation, ...]
    values: dict[str, tuple[str, ...]]
    unrelated: tuple[str, ...]
    """Questions that no memory answers, in words of none."""
