"""The way of a write: into the journal, which makes it durable, and from there into the stores."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from memserve.errors import (
    JournalFull,
    NamespaceNotFound,
    QuotaReached,
    RegistryUnavailable,
    VectorStoreUnavailable,
)
from memserve.memory.texts.journal import Journal
from memserve.memory.texts.journal_entries import Draft, WritesHeld
from memserve.memory.texts.records import tenant_key
from memserve.memory.texts.settling import Settling

NOT_COUNTED = "it has not been up since this registry is used, so its memories are not counted yet"

PinnedChange = Callable[[str, str], None]
"""Called with a tenant's key and a namespace."""
# Writes are held while another embedding model takes over. Then this one is refused, or they are let go.
HELD_MAX_S = 120.0
HELD_RETRY_S = 0.1

Outcome = int | JournalFull | QuotaReached | None
"""A write's sequence, its refusal, or None: the memory was written since the look."""


class KnownNamespaces:
    """The namespaces that tenants have.

    One that another gateway has deleted stays known here until this gateway starts again: it is empty then.
    """

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

    def discard(self, key: str, namespace: str) -> None:
        self._names.get(key, set()).discard(namespace)

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
    """Journals writes, and has settling bring them into the stores."""

    def __init__(
        self, journal: Journal, settling: Settling, namespaces: KnownNamespaces, *, apply_timeout_s: float
    ) -> None:
        """apply_timeout_s: how long a call waits for the searched store after its writes are durable."""
        self._journal = journal
        self._settling = settling
        self._namespaces = namespaces
        self._apply_timeout_s = apply_timeout_s
        self.pinned_changes: list[PinnedChange] = []
        """Called when pinned memories have changed by a write of this gateway."""
        self._under_way: set[asyncio.Task[tuple[list[Outcome], asyncio.Task[None] | None]]] = set()

    async def write(
        self, tenant: str, drafts: Sequence[Draft], last_sequence: int, *, together: bool = False
    ) -> list[Outcome]:
        """Journal a tenant's writes, and bring them into the searched store. Goes on when the call is
        cancelled.

        tenant: takes the turn. drafts, last_sequence, together: as `Journal.append_many` takes them.
        """
        if not self._settling.is_counted:
            raise VectorStoreUnavailable(NOT_COUNTED)
        journaling = asyncio.create_task(self._journal_and_apply(tenant, drafts, last_sequence, together))
        self._under_way.add(journaling)
        journaling.add_done_callback(self._ended)
        outcomes, applying = await asyncio.shield(journaling)
        if applying is not None:
            # The writes are durable. A late store changes nothing about that: the call ends well, and
            # settling goes on.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._apply_timeout_s):
                    await asyncio.shield(applying)
        return outcomes

    async def finish(self) -> None:
        """Wait for the writes that are on their way into the journal."""
        if self._under_way:
            await asyncio.wait(list(self._under_way))

    def _ended(self, journaling: asyncio.Task[tuple[list[Outcome], asyncio.Task[None] | None]]) -> None:
        self._under_way.discard(journaling)
        journaling.exception()  # the call that waits for the task may have been given up

    async def _journal_and_apply(
        self, tenant: str, drafts: Sequence[Draft], last_sequence: int, together: bool
    ) -> tuple[list[Outcome], asyncio.Task[None] | None]:
        journaled_s = time.monotonic()
        owner = drafts[0].write.tenant_key
        try:
            outcomes = await self._append(owner, drafts, last_sequence, together)
        except RegistryUnavailable:
            self._settling.be_unsure()
            self._tell_pinned(drafts)
            raise
        written = [
            replace(draft.write, sequence=outcome)
            for draft, outcome in zip(drafts, outcomes, strict=True)
            if isinstance(outcome, int)
        ]
        for write in written:
            self._namespaces.add(write.tenant_key, write.namespace)
        self._tell_pinned(
            [draft for draft, outcome in zip(drafts, outcomes, strict=True) if isinstance(outcome, int)]
        )
        return outcomes, self._settling.apply(tenant, written, journaled_s) if written else None

    def _tell_pinned(self, drafts: Sequence[Draft]) -> None:
        changed = {
            (draft.write.tenant_key, draft.write.namespace) for draft in drafts if draft.changes_pinned
        }
        for owner, namespace in sorted(changed):
            for tell in self.pinned_changes:
                tell(owner, namespace)

    async def _append(
        self, owner: str, drafts: Sequence[Draft], last_sequence: int, together: bool
    ) -> list[Outcome]:
        """As `Journal.append_many`; waits while another gateway holds writes."""
        end_s = time.monotonic() + HELD_MAX_S
        while True:
            try:
                return await self._journal.append_many(owner, drafts, last_sequence, together=together)
            except WritesHeld:
                if time.monotonic() >= end_s:
                    raise VectorStoreUnavailable("another embedding model takes over") from None
            await asyncio.sleep(HELD_RETRY_S)
