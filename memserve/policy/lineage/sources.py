"""Of which memories and versions a module version was made, as its record says."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from memserve.domain import ModuleVersion
from memserve.domain.lineage import MemoryVersionName

_SOURCE = re.compile(r"memory:([a-z0-9][a-z0-9._-]*)/([A-Za-z0-9][A-Za-z0-9._:-]*)@([1-9][0-9]{0,8})")


def source_of(name: MemoryVersionName) -> str:
    """How a version's sources name a memory."""
    return f"memory:{name}"


def memories_of(sources: Iterable[str]) -> tuple[MemoryVersionName, ...]:
    """The memories that a version's sources name. One line may name several, with spaces between.

    Other sources, which a publisher has written for people, are passed over.
    """
    names = []
    for line in sources:
        for word in line.split():
            if match := _SOURCE.fullmatch(word):
                names.append(MemoryVersionName(match[1], match[2], int(match[3])))
    return tuple(dict.fromkeys(names))


@dataclass(frozen=True, slots=True)
class Versions:
    """All module versions of a tenant."""

    all: Sequence[ModuleVersion]

    def of_digest(self, digest: str) -> list[ModuleVersion]:
        return [version for version in self.all if version.digest == digest]

    def made_of(self, is_source: Callable[[MemoryVersionName], bool]) -> list[ModuleVersion]:
        """The versions that were distilled from such a memory, those that were composed of them, and so on.

        A version with the content of one of them is one of them too, whatever its record says.
        """
        found = [version for version in self.all if any(map(is_source, memories_of(version.sources)))]
        return self.with_compositions(found)

    def with_compositions(self, versions: Iterable[ModuleVersion]) -> list[ModuleVersion]:
        """These, and what was made of their content, in the order of the tenant's versions."""
        digests = {version.digest for version in versions}
        while True:
            more = {
                version.digest
                for version in self.all
                if version.digest not in digests and not digests.isdisjoint(version.parents)
            }
            if not more:
                return [version for version in self.all if version.digest in digests]
            digests |= more
