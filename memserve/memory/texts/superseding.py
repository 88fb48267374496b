"""One memory takes the place of another one."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace

from memserve.domain import Finding, FindingKind, Link, LinkKind, Memory, MemoryState, WritePolicy
from memserve.errors import InvalidField, MemoryNotFound
from memserve.memory.texts import histories
from memserve.memory.texts.core import Core, Intent, draft_of, require_live
from memserve.memory.texts.records import Record, memory_key, tenant_key
from memserve.memory.texts.requests import MemoryName
from memserve.memory.texts.rules import LINKS_MAX, check_author, check_memory_id, check_namespace


class Superseding(Core):
    """The loser keeps its history, and frees its place in every search."""

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

        return await self._within(self._call_timeout_s, store, writes=True)

    async def _supersede_found(
        self,
        tenant: str,
        winner: Memory,
        findings: Sequence[Finding],
        author: str,
        policy: WritePolicy,
    ) -> tuple[Memory, tuple[Finding, ...]]:
        """Supersede what the memory updates, where the caller wants it. Returns the memory as it is then."""
        if not policy.supersede_updates:
            return winner, tuple(findings)
        told = []
        for finding in findings:
            if finding.kind is FindingKind.UPDATE:
                try:
                    _, winner = await self._supersede(
                        tenant,
                        MemoryName(finding.namespace, finding.memory_id),
                        MemoryName(winner.namespace, winner.memory_id),
                        author,
                    )
                    finding = replace(finding, superseded=True)
                except (MemoryNotFound, InvalidField):
                    pass  # it left meanwhile, or the winner has no room for another link
            told.append(finding)
        return winner, tuple(told)

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

    def _check_name(self, name: MemoryName) -> None:
        check_namespace("namespace", name.namespace)
        check_memory_id(name.memory_id)

    def _named(self, tenant: str, name: MemoryName) -> tuple[str, str, str]:
        """As `_change` takes it."""
        return memory_key(tenant, name.namespace, name.memory_id), tenant_key(tenant), name.namespace


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
