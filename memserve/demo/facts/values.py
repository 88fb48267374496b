"""What the demo's world is made of: entities, facts, questions, messages, cases and handbooks."""

from dataclasses import dataclass
from typing import Literal

World = Literal["train", "held_out", "adapter"]
Role = Literal["system", "user", "assistant"]
Need = Literal["passage", "distractors", "nothing"]
"""What the prompt of a case holds: the answer's passage, only other passages, or no passage at all."""


@dataclass(frozen=True, slots=True)
class Entity:
    """A named thing."""

    name: str
    kind: str
    """A word such as "ship", or "thing" for a name that has no kind."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One attribute of one entity, with its only value."""

    entity: Entity
    attribute: str
    value: str

    @property
    def key(self) -> tuple[str, str]:
        """Entity name and attribute: two facts with one key contradict each other or are the same."""
        return (self.entity.name, self.attribute)

    @property
    def answer(self) -> str:
        """The exact text of a right answer."""
        return f"The {self.attribute} of {self.entity.name} is {self.value}."


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its expected answer, and the fact that it asks for."""

    text: str
    answer: str
    fact: Fact


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str

    def as_dict(self) -> dict[str, str]:
        """The shape that a chat template takes."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class Case:
    """One evaluation question: the messages up to it, the expected answer, and what the prompt holds."""

    messages: tuple[Message, ...]
    question: Question
    expected: str
    need: Need


@dataclass(frozen=True, slots=True)
class Handbook:
    """A long system text and every fact in it, in the order of the text."""

    text: str
    facts: tuple[Fact, ...]
