"""What was made of what, and what an erasure did with everything that was made of a memory."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from memserve.domain.memories import ErasedPlace
from memserve.domain.modules import TrafficShare
from memserve.domain.open_enum import OpenEnum

_SOURCE = re.compile(
    r"(?<!\w)memory:([a-z0-9][a-z0-9._-]*)/([A-Za-z0-9][A-Za-z0-9._:-]*)@([1-9][0-9]{0,8})(?!\w)"
)


class LineageKind(OpenEnum):
    """What a node of a lineage is."""

    MEMORY = "memory"
    """One version of a text memory."""
    KV = "kv"
    """Computed state of prompts or modules."""
    MODULE = "module"
    """One version of a module."""
    ANSWER = "answer"
    UNKNOWN = "unknown"


class LineageState(OpenEnum):
    """Whether what a node stands for still holds."""

    CURRENT = "current"
    OUT_OF_DATE = "out_of_date"
    """There is a newer version of it, or of something that it was made of."""
    GONE = "gone"
    """It is not kept any more, or was taken back."""
    UNKNOWN = "unknown"


class MemoryVersionName(NamedTuple):
    """A version of a memory."""

    namespace: str
    memory_id: str
    version: int

    @property
    def memory(self) -> tuple[str, str]:
        return self.namespace, self.memory_id

    def __str__(self) -> str:
        return f"{self.namespace}/{self.memory_id}@{self.version}"


def source_of(name: MemoryVersionName) -> str:
    """How a version's sources name a memory."""
    return f"memory:{name}"


def memories_of(sources: Iterable[str]) -> tuple[MemoryVersionName, ...]:
    """The memories that a version's sources name. One line may name several, with spaces or marks between.

    Other sources, which a publisher has written for people, are passed over.
    """
    names = []
    for line in sources:
        for match in _SOURCE.finditer(line):
            names.append(MemoryVersionName(match[1], match[2], int(match[3])))
    return tuple(dict.fromkeys(names))


@dataclass(frozen=True, slots=True)
class LineageNode:
    """Something that was made, or of which something was made."""

    name: str
    """`memory:<namespace>/<id>@<version>`, `module:<name>@<version>`, `answer:<request id>`, `kv:<what>`."""
    kind: LineageKind
    state: LineageState
    detail: str = ""
    """One line for a person."""


@dataclass(frozen=True, slots=True)
class LineageEdge:
    """One step from what there was to what was made of it."""

    source: str
    made: str
    how: str
    """distilled, composed, recalled, answered, computed or derived."""


@dataclass(frozen=True, slots=True)
class Lineage:
    """What a thing was made of, and what was made of it, as far as it was asked for."""

    root: str
    nodes: tuple[LineageNode, ...]
    """The root first."""
    edges: tuple[LineageEdge, ...]
    cut: tuple[str, ...] = ()
    """What was left out, and why. One line each."""


class ErasureState(OpenEnum):
    """How far an erasure is."""

    PLANNED = "planned"
    """A dry run: nothing has changed."""
    PENDING = "pending"
    """A part could not be reached yet. It goes on by itself."""
    DONE = "done"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class MovedAlias:
    """What an erasure makes of an alias that pointed at a version that knows the memory."""

    module: str
    alias: str
    before: tuple[TrafficShare, ...]
    after: tuple[TrafficShare, ...]
    """Empty: it is dropped."""
    why: str
    """One line for a person."""
    revision: int = 0
    """Of the alias, before."""


@dataclass(frozen=True, slots=True)
class Retraining:
    """A module that is to be made again without what was erased."""

    module: str
    kind: str
    retired: str
    """The newest version that was retired: `name@number`."""
    memories: tuple[tuple[str, str], ...]
    """Namespace and id of those that are left."""
    queued_s: float
    """Seconds since the epoch."""
    seed: int = 0
    budget_s: float = 0.0
    """Both as the retired version was made."""
    made: str = ""
    """The version that was published since, without what was erased. Empty: none yet."""


@dataclass(frozen=True, slots=True)
class Erasure:
    """An erasure of a memory, or of a namespace, with all that was made of it."""

    erasure_id: str
    """Empty for a dry run."""
    namespace: str
    memory_id: str
    """Empty: the whole namespace."""
    state: ErasureState
    at_s: float
    """When it was asked for, in seconds since the epoch."""
    places: tuple[ErasedPlace, ...] = ()
    """What was removed where. Of a dry run: what would be."""
    derived: tuple[str, ...] = ()
    """Memories that were made of it, and are erased with it: `namespace/id`."""
    retired: tuple[str, ...] = ()
    """Versions that know it: `name@number`."""
    aliases: tuple[MovedAlias, ...] = ()
    retraining: tuple[Retraining, ...] = ()
    pending: tuple[str, ...] = ()
    """What is still to be done, and where. One line each."""
    seconds: float = 0.0
    """How long it took, without what is pending."""
