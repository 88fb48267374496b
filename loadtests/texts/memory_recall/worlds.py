"""What a model is to remember, and what it is asked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from memserve.domain import NewMemory

NAMESPACE = "facts"

KNOWN = "known"
"""A memory says it, and so does a module where there is one."""
UNKNOWN = "unknown"
"""No memory says it, of something that no memory names."""
NEAR_MISS = "near miss"
"""No memory says it, and some say something like it."""
UPDATED, SUPERSEDED, NEWER = "updated", "superseded", "newer"
"""A memory said something else before: it has a new version, another memory took its place, or another one
was remembered later and nothing else was said.
"""
EXPIRED, NOT_YET = "expired", "not yet valid"
"""A later memory says something else, which does not hold any more, or not yet."""
HOP = "two hops"
"""The memory that the question finds leads to the one that answers, by a link."""
CHANGED = (UPDATED, SUPERSEDED, NEWER, EXPIRED, NOT_YET)
UNANSWERABLE = (UNKNOWN, NEAR_MISS)


@dataclass(frozen=True, slots=True)
class Question:
    """A question and what answers it."""

    text: str
    answer: str
    """What a right reply contains. "": nothing answers it."""
    kind: str
    memory_id: str = ""
    """Of the memory that answers. "": none does."""
    module: str = ""
    """The module that holds the answer. "": none does."""


@dataclass(frozen=True, slots=True)
class Change:
    """A memory that is not as it was first remembered."""

    kind: str
    """One of CHANGED."""
    memory_id: str
    """Of the memory that was first."""
    later: NewMemory
    """What is said later. Of UPDATED only its text counts."""


@dataclass(frozen=True, slots=True)
class World:
    """All that one model is measured with."""

    name: str
    memories: tuple[NewMemory, ...]
    changes: tuple[Change, ...]
    questions: tuple[Question, ...]
    modules: Mapping[str, Path] = field(default_factory=dict)
    """The folders to publish, by the module's name."""
    unknown_reply: str = ""
    """What the model says when it does not know. "": it never says so."""


def contains(reply: str, answer: str) -> bool:
    """Whether the answer stands in the reply, as whole words and in any case."""
    return re.search(rf"(?<!\w){re.escape(answer.casefold())}(?!\w)", reply.casefold()) is not None


def is_right(question: Question, reply: str, unknown_reply: str) -> bool:
    """Whether the reply has the answer, or says that there is none. A model that never says so is wrong."""
    if question.answer:
        return contains(reply, question.answer)
    return bool(unknown_reply) and contains(reply, unknown_reply.rstrip("."))
