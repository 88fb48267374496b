"""The way of a write: into the journal, which makes it durable, and from there into Milvus."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace

from memserve.errors import NamespaceNotFound, RegistryUnavailable, VectorStoreUnavailable
from memserve.memory.texts.journal import Journal, Look, Write
from memserve.memory.texts.records import tenant_key
from memserve.memory.texts.settling import Settling

NOT_COUNTED = "it has not been up since this registry is used, so its memories are not counted yet"


class KnownNamespaces:
    """The namespaces that tenants have. A namespace is never removed, so that a known one stays known."""

    def __init__(self, journal: Journal, settling: Settling) -> None:
        self._journal = journal
        self._settling = settling
        # By tenant key.
        self._names: dict[str, set[str]] = {}

    async def learn(self) -> None:
        """Read all namespaces from the registry. Raises RegistryUnavailable."""
        async for key, names in self._journal.all_namespaces():
            self._names[key] = set(names)

    def add(self, key: str, namespace: str) -> None:
        self._names.setdefault(key, set()).add(namespace)

    async def require(self, tenant: str, namespaces: Sequence[str]) -> None:
        """Raises NamespaceNotFound. Without the registry an unknown namespace passes: it may exist."""
        key = tenant_key(tenant)
        known = self._names.get(key, set())
        if all(namespace in known for namespace in namespaces):
            return
        try:
            known = self._names[key] = set(await self._journal.counts(tenant))
        except RegistryUnavailable:
            return
        if self._settling.is_counted is False:
            raise VectorStoreUnavailable(NOT_COUNTED)
        for namespace in namespaces:
            if namespace not in known:
                raise NamespaceNotFound(namespace)


class JournalWriter:
    """Journals writes, and has settling bring them into Milvus."""

    def __init__(
        self, journal: Journal, settling: Settling, namespaces: KnownNamespaces, *, apply_timeout_s: float
    ) -> None:
        """apply_timeout_s: how long a call waits for Milvus after its write is durable."""
        self._journal = journal
        self._settling = settling
        self._namespaces = namespaces
        self._apply_timeout_s = apply_timeout_s
        self._under_way: set[asyncio.Task[asyncio.Task[None] | None]] = set()

    async def write(self, tenant: str, write: Write, look: Look, change: int) -> bool:
        """Journal a write, and bring it into Milvus. Goes on when the call is cancelled.

        look: what the journal knew of the memory. Returns False when the memory was written since then.
        change: how many memories the namespace gains; -1 for a memory that leaves.
        """
        if not self._settling.is_counted:
            raise VectorStoreUnavailable(NOT_COUNTED)
        journaling = asyncio.create_task(self._journal_and_apply(tenant, write, look, change))
        self._under_way.add(journaling)
        journaling.add_done_callback(self._ended)
        applying = await asyncio.shield(journaling)
        if applying is None:
            return False
        # The write is durable. A late Milvus changes nothing about that: the call ends well, and settling
        # goes on.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._apply_timeout_s):
                await asyncio.shield(applying)
        return True

    async def finish(self) -> None:
        """Wait for the writes that are on their way into the journal."""
        if self._under_way:
            await asyncio.wait(list(self._under_way))

    def _ended(self, journaling: asyncio.Task[asyncio.Task[None] | None]) -> None:
        self._under_way.discard(journaling)
        journaling.exception()  # the call that waits for the task may have been given up

    async def _journal_and_apply(
        self, tenant: str, write: Write, look: Look, change: int
    ) -> asyncio.Task[None] | None:
        journaled_s = time.monotonic()
        try:
            sequence = await self._journal.append(write, look, change)
        except RegistryUnavailable:
            self._settling.be_unsure()
            raise
        if sequence is None:
            return None
        self._namespaces.add(write.tenant_key, write.namespace)
        return self._settling.apply(tenant, replace(write, sequence=sequence), journaled_s)
