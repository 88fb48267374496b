"""The passages that namespaces have pinned: always in the prompt, in one order, so that their KV is warm."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from memserve.domain import Memory, MetadataValue, ScoredMemory
from memserve.memory.texts.memory import VectorMemory
from memserve.memory.texts.requests import ListQuery
from memserve.policy.recall.choosing import usable_at
from memserve.policy.recall.conditions import condition_verdict

FRESH_S = 2.0
"""A change at another gateway is seen after so long. One at this gateway is seen at once."""
KEPT_MAX = 1024
"""Namespaces whose pinned passages are kept here."""
PINNED_MAX = 64
"""Of a namespace."""
CLOCK_SKEW_S = 2.0


class Pinned:
    """Of all tenants' namespaces."""

    def __init__(self, texts: VectorMemory) -> None:
        self._texts = texts
        # With when it was read, and the gateway's last write then.
        self._kept: OrderedDict[tuple[str, str], tuple[float, int, tuple[Memory, ...]]] = OrderedDict()

    async def passages(
        self,
        tenant: str,
        namespaces: Sequence[str],
        context: Mapping[str, MetadataValue],
        now_s: float,
    ) -> tuple[ScoredMemory, ...]:
        """Those that hold now and whose conditions hold, by namespace as asked for, then by age.

        Raises NamespaceNotFound and VectorStoreUnavailable.
        """
        memories = [memory for name in namespaces for memory in await self._of(tenant, name)]
        return tuple(
            ScoredMemory(memory, 1.0, None, None, 1.0, memory.strength)
            for memory in memories
            if usable_at(memory, now_s, CLOCK_SKEW_S) is None and condition_verdict(memory, context).holds
        )

    async def _of(self, tenant: str, namespace: str) -> tuple[Memory, ...]:
        kept = self._kept.get((tenant, namespace))
        last_write = self._texts.last_write(tenant, namespace)
        if kept is not None and time.monotonic() - kept[0] < FRESH_S and kept[1] == last_write:
            return kept[2]
        memories = await self._listed(tenant, namespace)
        ordered = tuple(sorted(memories, key=lambda memory: (memory.created_s, memory.memory_id)))
        self._kept[tenant, namespace] = time.monotonic(), last_write, ordered
        self._kept.move_to_end((tenant, namespace))
        if len(self._kept) > KEPT_MAX:
            self._kept.popitem(last=False)
        return ordered

    async def _listed(self, tenant: str, namespace: str) -> list[Memory]:
        query = ListQuery((namespace,), filter="pinned", limit=PINNED_MAX)
        memories: list[Memory] = []
        while len(memories) < PINNED_MAX:
            page = await self._texts.list_memories(tenant, query)
            memories += page.memories
            if not page.next_page_token:
                break
            query = replace(query, page_token=page.next_page_token)
        return memories[:PINNED_MAX]
