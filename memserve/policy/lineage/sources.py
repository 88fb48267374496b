"""Of which memories and versions a module version was made, as its record says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from memserve.domain import ModuleVersion
from memserve.domain.lineage import MemoryVersionName, memories_of


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
