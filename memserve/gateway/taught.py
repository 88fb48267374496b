"""What the modules of requests were made of, so that a receipt can say which fact the text corrects."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

from memserve.domain import ModuleVersion, OutdatedFact, ScoredMemory
from memserve.domain.lineage import MemoryVersionName, memories_of
from memserve.errors import MemoryNotFound, MemserveError, NamespaceNotFound
from memserve.memory.modules.memory import ParametricMemory
from memserve.memory.texts import histories
from memserve.memory.texts.memory import VectorMemory
from memserve.policy.lineage.receipts import Taught, facts_of, outdated_facts
from memserve.processes.supervised import Background

log = logging.getLogger("memserve.gateway")

KEPT_MAX = 64
"""Versions. The one that was asked for longest ago leaves."""
MEMORIES_MAX = 512
AT_ONCE = 16
WAIT_S = 0.25
"""For a version that is not known yet. It is read on for the next request."""


class TaughtFacts:
    """Versions never change, so what one was made of is read once."""

    def __init__(self, modules: ParametricMemory, texts: VectorMemory, background: Background) -> None:
        self._modules = modules
        self._texts = texts
        self._background = background
        self._known: OrderedDict[tuple[str, str], asyncio.Task[tuple[Taught, ...]]] = OrderedDict()

    def forget(self, tenant: str) -> None:
        """For a tenant whose memory is erased: what was read of it may be here."""
        for key in [key for key in self._known if key[0] == tenant]:
            del self._known[key]

    async def outdated(
        self, tenant: str, versions: Sequence[ModuleVersion], passages: Sequence[ScoredMemory]
    ) -> tuple[OutdatedFact, ...]:
        """What passages in the prompt correct. Nothing is said of a version that is not known in time."""
        found: list[OutdatedFact] = []
        for version in versions if passages else ():
            taught = await self._taught(tenant, version)
            found += outdated_facts(version.reference, taught, [hit.memory for hit in passages])
        return tuple(found)

    async def _taught(self, tenant: str, version: ModuleVersion) -> tuple[Taught, ...]:
        key = (tenant, version.reference + version.digest)
        reading = self._known.get(key)
        if reading is None or (reading.done() and (reading.cancelled() or reading.exception() is not None)):
            if self._background.is_full:
                return ()
            work = self._read(tenant, version.module, version.version)
            reading = self._background.begin(f"reading what {version.reference} was made of", work)
            self._known[key] = reading
            if len(self._known) > KEPT_MAX:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        try:
            async with asyncio.timeout(WAIT_S):
                return await asyncio.shield(reading)
        except (TimeoutError, MemserveError):
            return ()

    async def _read(self, tenant: str, name: str, number: int) -> tuple[Taught, ...]:
        version = await self._modules.version(tenant, name, number)
        names = memories_of(version.sources)[:MEMORIES_MAX]
        taught: list[Taught] = []
        for start in range(0, len(names), AT_ONCE):
            some = names[start : start + AT_ONCE]
            taught += await asyncio.gather(*map(partial(self._memory, tenant), some))
        return tuple(taught)

    async def _memory(self, tenant: str, name: MemoryVersionName) -> Taught:
        try:
            history = await self._texts.history(tenant, name.namespace, name.memory_id)
        except (MemoryNotFound, NamespaceNotFound):
            return Taught(name, {})
        memory = histories.version_of(history, name.version)
        return Taught(name, {} if memory is None else facts_of(memory.text))
