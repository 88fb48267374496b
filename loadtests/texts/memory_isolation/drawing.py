"""What calls are drawn from: few names and words, so that calls meet each other's memories."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from memserve.pb.v1 import memory_pb2 as pb

NAMESPACES = ("notes", "plans")
ASKED = "desk"
"""Generate recalls from here. It has so few memories that every search looks at all: how often each is
used does not hang on a cut.
"""
LESSONS = "lessons"
"""Reflections go there: their ids are random, so that their order by id is too."""
UNKNOWN = "nowhere"
IDS = tuple(f"m{number}" for number in range(14))
DOCUMENTS = ("handbook", "letter")
_WORDS = (
    "harbour pump oil lamp gate tower river bridge north south winter summer opens closes turns keeps code "
    "valve engine market ferry bell stone garden window letter morning evening bread salt copper iron"
)
COMMON = tuple(_WORDS.split())
FILTERS = (
    'kind == "fact"', "strength > 0.5", "metadata.level >= 3", 'contains(keywords, "pump")', "version > 1",
    'metadata.city == "Oslo" or pinned', "not pinned", "position >= 0", "created_s > 1.0", "broken ((",
    'source == "log" and metadata.level < 4', "x" * 5000,
)  # fmt: skip
USES_WRITTEN_S = 1.3
STATES: Any = ([], [pb.MEMORY_STATE_LIVE, pb.MEMORY_STATE_SUPERSEDED, pb.MEMORY_STATE_FORGOTTEN],
               [pb.MEMORY_STATE_FORGOTTEN])  # fmt: skip
LINK_KINDS: Any = pb.LinkKind.values()[1:]
ORDERS: Any = pb.MemoryOrder.values()
CONDITIONS = ("", "", "", 'role == "admin"', "level > 2", "has(region)")


@dataclass
class Drawn:
    """What the calls of one tenant are drawn from. marker: a word that only this tenant writes."""

    draw: random.Random
    marker: str
    other_marker: str
    lists: int = 0
    texts: list[str] = field(default_factory=list)

    def words(self, count: int) -> str:
        return " ".join(self.draw.choices(COMMON, k=count))

    def text(self) -> str:
        if self.texts and self.draw.random() < 0.2:
            return self.draw.choice(self.texts)
        text = f"The {self.words(self.draw.randint(3, 16))} of {self.marker} is {self.draw.randint(1, 99)}."
        self.texts.append(text)
        return text

    def namespace(self) -> str:
        drawn = self.draw.random()
        return UNKNOWN if drawn < 0.04 else ASKED if drawn < 0.2 else self.draw.choice(NAMESPACES)

    def namespaces(self) -> list[str]:
        return [self.namespace()] if self.draw.random() < 0.6 else list(NAMESPACES)

    def memory_id(self) -> str:
        if self.draw.random() < 0.1:
            return f"{self.draw.choice(DOCUMENTS)}:{self.draw.randint(0, 2)}"
        return self.draw.choice(IDS)

    def question(self) -> str:
        marked = self.draw.random()
        extra = self.other_marker if marked < 0.15 else self.marker if marked < 0.3 else ""
        return f"What is the {self.words(self.draw.randint(1, 6))} {extra}?"

    def metadata(self) -> dict[str, pb.MetadataValue]:
        values = {}
        if self.draw.random() < 0.4:
            values["level"] = pb.MetadataValue(whole=self.draw.randint(0, 5))
        if self.draw.random() < 0.3:
            values["city"] = pb.MetadataValue(text=self.draw.choice(("Oslo", "Rome")))
        return values

    def links(self) -> list[pb.MemoryLink]:
        count = self.draw.choice((0, 0, 1, 2))
        kinds = self.draw.choices(LINK_KINDS, k=count)
        return [pb.MemoryLink(kind=kind, memory_id=self.memory_id()) for kind in kinds]

    def place(self) -> pb.MemoryPlace | None:
        if self.draw.random() < 0.6:
            return None
        return pb.MemoryPlace(within="session", position=self.draw.randint(0, 9))

    def content(self) -> dict[str, object]:
        return {
            "text": self.text(), "source": self.draw.choice(("", "log", "mail")),
            "keywords": self.draw.sample(COMMON, self.draw.randint(0, 3)), "metadata": self.metadata(),
            "kind": self.draw.randint(0, 5), "links": self.links(), "place": self.place(),
            "applies_when": self.draw.choice(CONDITIONS), "pinned": self.draw.random() < 0.08,
            "strength": self.draw.choice((0.0, 0.5, 1.0, 2.0)),
        }  # fmt: skip

    def policy(self) -> pb.WritePolicy:
        shown = self.draw.random
        return pb.WritePolicy(
            skip_relations=shown() < 0.5, supersede_updates=shown() < 0.2, skip_duplicates=shown() < 0.2
        )

    def options(self) -> pb.SearchOptions:
        draw = self.draw
        return pb.SearchOptions(
            filter=draw.choice(FILTERS) if draw.random() < 0.3 else "",
            min_relevance=draw.choice((0.0, 0.0, 0.05)),
            diversity=draw.choice((0.0, 0.0, 0.5)),
            context={"role": pb.MetadataValue(text="admin")} if draw.random() < 0.5 else {},
            neighbours=draw.choice((0, 0, 2)),
            link_depth=draw.choice((0, 0, 2)),
        )
