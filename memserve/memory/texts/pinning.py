"""The pinned memories of a namespace: those that every prompt that recalls from it has."""

from __future__ import annotations

from memserve.domain import Memory, MemoryState
from memserve.memory.texts.core import Core
from memserve.memory.texts.records import memory_key
from memserve.memory.texts.rules import check_namespace
from memserve.memory.texts.writing import PinnedChange


class Pinning(Core):
    """The registry has their ids, kept with every write. The namespace is not searched for them."""

    async def pinned(self, tenant: str, namespace: str) -> list[Memory]:
        """The namespace's live pinned memories, the oldest first. There are at most PINNED_MAX.

        Raises NamespaceNotFound.
        """
        check_namespace("namespace", namespace)

        async def read() -> list[Memory]:
            await self._namespaces.require(tenant, [namespace])
            ids = await self._journal.pinned(tenant, namespace)
            keys = [memory_key(tenant, namespace, memory_id) for memory_id in ids]
            # The journal first: a write that has left the journal is in the store.
            pending = await self._pending_of(keys)
            stored = await self._read_many(tenant, [key for key in keys if key not in pending])
            records = [pending[key].record if key in pending else stored.get(key) for key in keys]
            found = [record.memory for record in records if record is not None]
            kept = [memory for memory in found if memory.pinned and memory.state is MemoryState.LIVE]
            return sorted(kept, key=lambda memory: (memory.created_s, memory.memory_id))

        return await self._within(self._call_timeout_s, read)

    def on_pinned_change(self, tell: PinnedChange) -> None:
        """Have it called with a tenant's key and a namespace whenever a write of this gateway has changed the
        namespace's pinned memories.
        """
        self._writer.pinned_changes.append(tell)
