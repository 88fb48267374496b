"""Of which memories and versions a module version was made, as its record says."""

from __future__ import annotations

from collections import defaultdict
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

    def made_of(
        self, is_source: Callable[[MemoryVersionName], bool], digests: Iterable[str] = ()
    ) -> list[ModuleVersion]:
        """The versions that were distilled from such a memory, those that were composed of them, and so on.

        A version with the content of one of them is one of them too, whatever its record says.
        digests: of contents that were made of such a memory, whose versions may be gone.
        """
        found = [version for version in self.all if any(map(is_source, memories_of(version.sources)))]
        return self.products_of({*digests, *(version.digest for version in found)})

    def with_compositions(self, versions: Iterable[ModuleVersion]) -> list[ModuleVersion]:
        """These, and what was made of their content, in the order of the tenant's versions."""
        return self.products_of({version.digest for version in versions})

    def products_of(self, contents: Iterable[str]) -> list[ModuleVersion]:
        """The versions that have one of these contents, or were made of one, and so on.

        contents: digests.
        """
        digests = set(contents)
        products: defaultdict[str, list[str]] = defaultdict(list)
        for version in self.all:
            for parent in version.parents:
                products[parent].append(version.digest)
        front = list(digests)
        while front:
            for product in products.get(front.pop(), ()):
                if product not in digests:
                    digests.add(product)
                    front.append(product)
        return [version for version in self.all if version.digest in digests]
