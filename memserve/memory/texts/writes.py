"""Writes of one memory: remember, update, supersede, restore, forget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt

from memserve.domain import (
    Finding,
    FindingKind,
    Memory,
    MemoryAction,
    MemoryState,
    NewMemory,
    Remembered,
    WritePolicy,
)
from memserve.errors import (
    InvalidField,
    MemoryConflict,
    MemoryNotFound,
    MemserveError,
    VersionConflict,
    VersionNotFound,
)
from memserve.memory.texts import histories
from memserve.memory.texts.core import Intent, require_live
from memserve.memory.texts.index import MILVUS_ERRORS
from memserve.memory.texts.records import Record, first_history, memory_key, tenant_key
from memserve.memory.texts.relating import linked, near_memories
from memserve.memory.texts.requests import CHANGEABLE, MemoryChanges, MemoryName
from memserve.memory.texts.rules import (
    check_author,
    checked_new,
    have_same_content,
)
from memserve.memory.texts.store import Scope
from memserve.memory.texts.superseding import Superseding

Vector = npt.NDArray[np.float32]
DEFAULT_POLICY = WritePolicy()


class Writes(Superseding):
    """On return of every method the change is durable: it is in the journal, on disk.

    Reads by id find it at once. Searches find it when the searched store has it, which is at once too unless
    that store fails. author: the name of the key or token that writes.
    """

    async def remember(
        self, tenant: str, new: NewMemory, author: str = "", policy: WritePolicy = DEFAULT_POLICY
    ) -> Remembered:
        """Store a memory. The first memory of a namespace creates the namespace.

        Repeating it is harmless: where any version of the memory has this content, the current one comes
        back. A forgotten memory is remembered again, as a new version.

        Raises JournalFull, QuotaReached, and MemoryConflict when the id has other content.
        """
        memory = self._checked(new, author)

        async def store() -> Remembered:
            vector = await self.embed(tenant, memory.text, query=False)
            return await self._remember(tenant, memory, vector, policy)

        return await self._within(self._call_timeout_s, store, writes=True)

    async def update(
        self, tenant: str, changes: MemoryChanges, author: str = "", policy: WritePolicy = DEFAULT_POLICY
    ) -> Remembered:
        """Write a new version. The one before stays in the history.

        Changes that change nothing write nothing; then `created` is False.
        Raises NamespaceNotFound, MemoryNotFound, VersionConflict, JournalFull and QuotaReached.
        """
        name = MemoryName(changes.content.namespace, changes.content.memory_id)
        self._check_name(name)
        check_author(author)
        for field in sorted(changes.fields):
            if field not in CHANGEABLE:
                raise InvalidField("fields", f"may name {', '.join(sorted(CHANGEABLE))}")

        async def store() -> Remembered:
            await self._namespaces.require(tenant, [name.namespace])
            while True:
                seen = await self._current(tenant, name.namespace, name.memory_id)
                memory = self._changed(require_live(seen, name.memory_id).memory, changes, author)
                vector = await self.embed(tenant, memory.text, query=False)
                findings = await self._findings(tenant, memory, vector, policy)
                version = seen.memory.version
                outcome = await self._update_version(
                    tenant, linked(memory, findings), vector, version, changes.expected_version
                )
                if outcome is not None:
                    break
            current, created = outcome
            if created:
                current, findings = await self._supersede_found(tenant, current, findings, author, policy)
            return Remembered(current, created, findings)

        return await self._within(self._call_timeout_s, store, writes=True)

    async def restore(
        self,
        tenant: str,
        name: MemoryName,
        author: str = "",
        *,
        version: int | None = None,
        expected_version: int | None = None,
    ) -> Memory:
        """Make an earlier version the current one, live again. This is a new version.

        version: None for the last one that was live.
        Raises NamespaceNotFound, MemoryNotFound, VersionNotFound, VersionConflict, JournalFull, QuotaReached.
        """
        self._check_name(name)
        check_author(author)

        async def store() -> Memory:
            while True:
                seen = await self._current(tenant, name.namespace, name.memory_id)
                content = self._version_to_restore(seen, version)
                vector = await self.embed(tenant, content.text, query=False)
                seen_version = seen.memory.version
                decide = partial(
                    self._restored, content=content, vector=vector, author=author, seen=seen_version,
                    expected=expected_version,
                )  # fmt: skip
                changed = await self._change(tenant, self._named(tenant, name), decide)
                if changed is not None and changed.after is not None:
                    return changed.after.memory

        return await self._within(self._call_timeout_s, store, writes=True)

    def _restored(
        self,
        before: Record | None,
        *,
        content: Memory,
        vector: Vector,
        author: str,
        seen: int,
        expected: int | None,
    ) -> Intent | None:
        """None: another version than the one that was seen is current."""
        if before is None:
            raise MemoryNotFound(content.memory_id)
        _check_version(before.memory, expected)
        if before.memory.version != seen:
            return None
        history = histories.restored(before.history, content, author, self._now_s())
        return Intent(Record(before.key, before.tenant_key, history, vector), True)

    async def forget(self, tenant: str, namespace: str, memory_id: str, author: str = "") -> bool:
        """Take a memory out of every kind of search and out of `get`, durably. Its history stays.

        It can be restored until it is purged. Superseded memories can be forgotten too.
        Returns False when there is no such memory or namespace, or it is forgotten already. Raises
        JournalFull.
        """
        name = MemoryName(namespace, memory_id)
        self._check_name(name)
        check_author(author)

        def decide(before: Record | None) -> Intent | None:
            if before is None or before.memory.state is MemoryState.FORGOTTEN:
                return None
            history = histories.forgotten(before.history, author, self._now_s())
            return Intent(replace(before, history=history))

        async def forget_once() -> bool:
            return await self._change(tenant, self._named(tenant, name), decide) is not None

        return await self._within(self._call_timeout_s, forget_once, writes=True)

    # What the calls above and those of many memories share

    def _checked(self, new: NewMemory, author: str) -> Memory:
        check_author(author)
        return checked_new(new, author, self._now_s())

    async def _remember(self, tenant: str, memory: Memory, vector: Vector, policy: WritePolicy) -> Remembered:
        key, owner = memory_key(tenant, *memory.name), tenant_key(tenant)
        findings = await self._findings(tenant, memory, vector, policy)
        if policy.skip_duplicates and (duplicate := _duplicate(findings)) is not None:
            there = await self._current(tenant, duplicate.namespace, duplicate.memory_id)
            if there.memory.name != memory.name:
                return Remembered(there.memory, False, findings)
        known: list[Memory] = []

        def decide(before: Record | None) -> Intent | None:
            known.clear()
            intent = remembered(before, Record(key, owner, first_history(linked(memory, findings)), vector))
            if intent is None and before is not None:
                known.append(before.memory)
            return intent

        changed = await self._change(tenant, (key, owner, memory.namespace), decide)
        if changed is None or changed.after is None:
            return Remembered(known[0], False)
        stored = changed.after.memory
        stored, findings = await self._supersede_found(tenant, stored, findings, memory.author, policy)
        return Remembered(stored, True, findings)

    async def _findings(
        self, tenant: str, memory: Memory, vector: Vector, policy: WritePolicy
    ) -> tuple[Finding, ...]:
        """What the rules say of what is near. A search that fails finds nothing: the write goes on."""
        relate = self._relate
        if relate is None or policy.skip_relations:
            return ()
        scope = Scope(tenant_key(tenant), (memory.namespace,))
        try:
            near = await self._searched.read(
                tenant, lambda store: near_memories(store, scope, memory, vector, self._call_timeout_s / 4)
            )
        except (*MILVUS_ERRORS, MemserveError):
            return ()
        return tuple(relate(memory, near))

    def _changed(self, seen: Memory, changes: MemoryChanges, author: str) -> Memory:
        """The checked content that an update leads to."""
        kept = NewMemory(
            **{name: getattr(seen, name) for name in CHANGEABLE},
            namespace=seen.namespace,
            memory_id=seen.memory_id,
        )
        changed = {name: getattr(changes.content, name) for name in changes.fields}
        return self._checked(replace(kept, **changed), author)

    async def _update_version(
        self, tenant: str, memory: Memory, vector: Vector, seen: int, expected: int | None
    ) -> tuple[Memory, bool] | None:
        """Write the content as the version after `seen`. None: another version is current."""
        unchanged: list[Memory] = []

        def decide(before: Record | None) -> Intent | None:
            before = require_live(before, memory.memory_id)
            _check_version(before.memory, expected)
            if before.memory.version != seen:
                return None
            if have_same_content(before.memory, memory):
                unchanged.append(before.memory)
                return None
            history = histories.updated(before.history, memory)
            return Intent(Record(before.key, before.tenant_key, history, vector), True)

        name = MemoryName(memory.namespace, memory.memory_id)
        changed = await self._change(tenant, self._named(tenant, name), decide)
        if changed is not None and changed.after is not None:
            return changed.after.memory, True
        return (unchanged[0], False) if unchanged else None

    @staticmethod
    def _version_to_restore(record: Record, version: int | None) -> Memory:
        memory_id = record.memory.memory_id
        if version is None:
            found = histories.last_live(record.history)
            if found is None:
                raise VersionNotFound(memory_id, "version that was live")
        else:
            found = histories.version_of(record.history, version)
            if found is None:
                raise VersionNotFound(memory_id, f"version {version}")
        return found


def remembered(before: Record | None, new: Record) -> Intent | None:
    """What a remember makes of a memory. None: it is there already. Raises MemoryConflict."""
    if before is None:
        return Intent(new, True)
    memory = new.memory
    if before.memory.state is MemoryState.FORGOTTEN:
        history = histories.with_version(before.history, memory, MemoryAction.REMEMBERED)
        return Intent(replace(new, history=history), True)
    if any(have_same_content(version.memory, memory) for version in before.history.versions):
        return None
    raise MemoryConflict(memory.memory_id)


def _duplicate(findings: Sequence[Finding]) -> Finding | None:
    return next((finding for finding in findings if finding.kind is FindingKind.DUPLICATE), None)


def _check_version(memory: Memory, expected: int | None) -> None:
    if expected is not None and memory.version != expected:
        raise VersionConflict(memory.memory_id, expected, memory.version)
