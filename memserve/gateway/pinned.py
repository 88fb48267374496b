"""The passages that namespaces have pinned: always in the prompt, in one order, so that their KV is warm."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from memserve.domain import Memory, MetadataValue, ScoredMemory
from memserve.memory.texts.memory import VectorMemory
from memserve.memory.texts.records import tenant_key
from memserve.memory.texts.writing import PinnedChange
from memserve.policy.recall.choosing import usable_at
from memserve.policy.recall.conditions import condition_verdict

FRESH_S = 2.0
"""A change at another gateway is seen after so long. One at this gateway is seen at once."""
KEPT_MAX = 1024
"""Namespaces whose pinned passages are kept here."""
CLOCK_SKEW_S = 2.0


class Pinned:
    """Of all tenants' namespaces."""

    def __init__(self, texts: VectorMemory) -> None:
        self._texts = texts
        # By the tenant's key and the namespace.
        self._kept: OrderedDict[tuple[str, str], tuple[float, tuple[Memory, ...]]] = OrderedDict()
        self._changes = 0
        texts.on_pinned_change(self._forget)

    def on_change(self, tell: PinnedChange) -> None:
        """Have it called with a tenant's key and a namespace after a change at this gateway."""
        self._texts.on_pinned_change(tell)

    async def passages(
        self,
        tenant: str,
        namespaces: Sequence[str],
        context: Mapping[str, MetadataValue],
        now_s: float,
    ) -> tuple[ScoredMemory, ...]:
        """Those that hold now and whose conditions hold, by namespace as asked for, then by age.

        Those without a condition go first, so that all requests' prompts begin with them.
        Raises NamespaceNotFound, VectorStoreUnavailable and RegistryUnavailable.
        """
        held = await self._held(tenant, namespaces, now_s)
        shared = [memory for memory in held if not memory.applies_when]
        own = [memory for memory in held if memory.applies_when and condition_verdict(memory, context).holds]
        return tuple(_scored(memory) for memory in (*shared, *own))

    async def shared(self, tenant: str, namespaces: Sequence[str], now_s: float) -> tuple[ScoredMemory, ...]:
        """The first of the passages, which every request has. Raises as `passages`."""
        held = await self._held(tenant, namespaces, now_s)
        return tuple(_scored(memory) for memory in held if not memory.applies_when)

    async def _held(self, tenant: str, namespaces: Sequence[str], now_s: float) -> list[Memory]:
        return [
            memory
            for name in namespaces
            for memory in await self._of(tenant, name)
            if usable_at(memory, now_s, CLOCK_SKEW_S) is None
        ]

    async def _of(self, tenant: str, namespace: str) -> tuple[Memory, ...]:
        key = tenant_key(tenant), namespace
        kept = self._kept.get(key)
        if kept is not None and time.monotonic() - kept[0] < FRESH_S:
            return kept[1]
        changes = self._changes
        memories = tuple(await self._texts.pinned(tenant, namespace))
        if changes == self._changes:  # else it may be from before the change
            self._kept[key] = time.monotonic(), memories
            self._kept.move_to_end(key)
            if len(self._kept) > KEPT_MAX:
                self._kept.popitem(last=False)
        return memories

    def _forget(self, owner: str, namespace: str) -> None:
        self._changes += 1
        self._kept.pop((owner, namespace), None)


def _scored(memory: Memory) -> ScoredMemory:
    return ScoredMemory(memory, 1.0, None, None, 1.0, memory.strength)
