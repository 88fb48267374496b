"""All module versions of a tenant, and what their memories are now."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from memserve.domain import Module, ModuleVersion
from memserve.errors import MemoryNotFound, NamespaceNotFound
from memserve.memory.modules.registry.store import ModuleStore
from memserve.memory.texts.memory import VectorMemory
from memserve.policy.lineage.graph import KnownMemory, known_memory
from memserve.policy.lineage.sources import Versions

MODULES_PAGE, VERSIONS_PAGE = 100, 100
MEMORIES_AT_ONCE = 16


class LineageRecords:
    """What lineage and erasure read. Every method raises RegistryUnavailable."""

    def __init__(self, store: ModuleStore, texts: VectorMemory) -> None:
        self._store = store
        self._texts = texts

    async def modules(self, tenant: str) -> list[Module]:
        """Every module, with its aliases."""
        modules: list[Module] = []
        after = ""
        while True:
            page, after = await self._store.modules(tenant, after=after, limit=MODULES_PAGE)
            modules += page
            if not after:
                return modules

    async def versions(self, tenant: str, modules: Iterable[Module]) -> Versions:
        """Every version of these modules, with all its fields."""
        versions: list[ModuleVersion] = []
        for module in modules:
            before: int | None = None
            while before != 0:
                page, before = await self._store.versions(
                    tenant, module.name, before=before, limit=VERSIONS_PAGE
                )
                versions += page
        return Versions(versions)

    async def memories(
        self, tenant: str, names: Sequence[tuple[str, str]]
    ) -> dict[tuple[str, str], KnownMemory | None]:
        """By namespace and id. None: there is no such memory."""
        known: dict[tuple[str, str], KnownMemory | None] = {}
        wanted = list(dict.fromkeys(names))
        for start in range(0, len(wanted), MEMORIES_AT_ONCE):
            some = wanted[start : start + MEMORIES_AT_ONCE]
            found = await asyncio.gather(*(self._memory(tenant, *name) for name in some))
            known |= dict(zip(some, found, strict=True))
        return known

    async def _memory(self, tenant: str, namespace: str, memory_id: str) -> KnownMemory | None:
        try:
            history = await self._texts.history(tenant, namespace, memory_id)
        except (MemoryNotFound, NamespaceNotFound):
            return None
        return known_memory(history.current)
