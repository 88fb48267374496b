"""Writes of one memory: remember, update, supersede, restore, forget."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt

from memserve.domain import (
    Finding,
    FindingKind,
    Link,
    LinkKind,
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
from memserve.memory.texts.core import Core, Intent, draft_of, require_live
from memserve.memory.texts.index import MILVUS_ERRORS
from memserve.memory.texts.records import Record, first_history, memory_key, tenant_key
from memserve.memory.texts.relating import linked, near_memories
from memserve.memory.texts.requests import CHANGEABLE, MemoryChanges, MemoryName
from memserve.memory.texts.rules import (
    LINKS_MAX,
    check_author,
    check_memory_id,
    check_namespace,
    checked_new,
    have_same_content,
)
from memserve.memory.texts.store import Scope

Vector = npt.NDArray[np.float32]
DEFAULT_POLICY = WritePolicy()


class Writes(Core):
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

        return await self._within(self._call_timeout_s, store)

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
                findings = await self._supersede_found(tenant, current, findings, author, policy)
            return Remembered(current, created, findings)

        return await self._within(self._call_timeout_s, store)

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

        return await self._within(self._call_timeout_s, store)

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

    async def supersede(
        self, tenant: str, old: MemoryName, new: MemoryName, author: str = ""
    ) -> tuple[Memory, Memory]:
        """Put one memory in the place of another one, which keeps its history and is not searched any more.

        Both change or neither. Returns the old and the new one. Raises NamespaceNotFound, MemoryNotFound,
        JournalFull, and InvalidField when they are one memory or the new one has no room for a link.
        """
        self._check_name(old)
        self._check_name(new)
        check_author(author)
        if old == new:
            raise InvalidField("memory_id", "a memory does not supersede itself")

        async def store() -> tuple[Memory, Memory]:
            await self._namespaces.require(tenant, [old.namespace, new.namespace])
            return await self._supersede(tenant, old, new, author)

        return await self._within(self._call_timeout_s, store)

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

        return await self._within(self._call_timeout_s, forget_once)

    # What the calls above and those of many memories share

    def _checked(self, new: NewMemory, author: str) -> Memory:
        check_author(author)
        return checked_new(new, author, self._now_s())

    def _check_name(self, name: MemoryName) -> None:
        check_namespace("namespace", name.namespace)
        check_memory_id(name.memory_id)

    def _named(self, tenant: str, name: MemoryName) -> tuple[str, str, str]:
        """As `_change` takes it."""
        return memory_key(tenant, name.namespace, name.memory_id), tenant_key(tenant), name.namespace

    async def _remember(self, tenant: str, memory: Memory, vector: Vector, policy: WritePolicy) -> Remembered:
        key, owner = memory_key(tenant, memory.namespace, memory.memory_id), tenant_key(tenant)
        findings = await self._findings(tenant, memory, vector, policy)
        if policy.skip_duplicates and (duplicate := _duplicate(findings)) is not None:
            there = await self._current(tenant, duplicate.namespace, duplicate.memory_id)
            if (there.memory.namespace, there.memory.memory_id) != (memory.namespace, memory.memory_id):
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
        findings = await self._supersede_found(tenant, stored, findings, memory.author, policy)
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

    async def _supersede_found(
        self,
        tenant: str,
        winner: Memory,
        findings: Sequence[Finding],
        author: str,
        policy: WritePolicy,
    ) -> tuple[Finding, ...]:
        """Supersede what the memory updates, where the caller wants it."""
        if not policy.supersede_updates:
            return tuple(findings)
        told = []
        for finding in findings:
            if finding.kind is FindingKind.UPDATE:
                try:
                    await self._supersede(
                        tenant,
                        MemoryName(finding.namespace, finding.memory_id),
                        MemoryName(winner.namespace, winner.memory_id),
                        author,
                    )
                    finding = replace(finding, superseded=True)
                except (MemoryNotFound, InvalidField):
                    pass  # it left meanwhile, or the winner has no room for another link
            told.append(finding)
        return tuple(told)

    async def _supersede(
        self, tenant: str, old: MemoryName, new: MemoryName, author: str
    ) -> tuple[Memory, Memory]:
        owner = tenant_key(tenant)
        (loser_key, _, _), (winner_key, _, _) = self._named(tenant, old), self._named(tenant, new)
        author_of_both = uuid.uuid4().hex
        while True:
            looks = await self._journal.look_many(
                {loser_key: old.namespace, winner_key: new.namespace}, owner
            )
            records = await self._known(tenant, looks)
            loser = require_live(records.get(loser_key), old.memory_id)
            winner = require_live(records.get(winner_key), new.memory_id)
            pending = looks[loser_key].pending
            if pending is not None and pending.author == author_of_both:
                return loser.memory, winner.memory  # both were written, and the answer was lost
            by = Link(LinkKind.SUPERSEDES, new.memory_id, new.namespace)
            if loser.memory.state is MemoryState.SUPERSEDED and loser.memory.superseded_by == by:
                return loser.memory, winner.memory
            now_s = self._now_s()
            lost = replace(loser, history=histories.superseded(loser.history, winner.memory, author, now_s))
            won = _with_link(winner, loser.memory, author, now_s)
            drafts = [
                draft_of(key, owner, before, Intent(after), looks[key])
                for key, before, after in ((loser_key, loser, lost), (winner_key, winner, won))
            ]
            drafts = [replace(draft, write=replace(draft.write, author=author_of_both)) for draft in drafts]
            last = min(look.last_sequence for look in looks.values())
            outcomes = await self._writer.write(tenant, drafts, last, together=True)
            for outcome in outcomes:
                if isinstance(outcome, Exception):
                    raise outcome
            if None not in outcomes:
                return lost.memory, won.memory

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


def _with_link(winner: Record, loser: Memory, author: str, now_s: float) -> Record:
    memory = winner.memory
    link = Link(
        LinkKind.SUPERSEDES,
        loser.memory_id,
        "" if loser.namespace == memory.namespace else loser.namespace,
    )
    links = tuple(dict.fromkeys((*memory.links, link)))
    if len(links) > LINKS_MAX:
        raise InvalidField("links", f"the memory has {LINKS_MAX} already, and no room for another one")
    changed = replace(memory, links=links, author=author, updated_s=now_s)
    return replace(winner, history=histories.updated(winner.history, changed))
