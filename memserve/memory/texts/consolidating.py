"""Memories that become fewer: all in one step of the journal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from memserve.domain import Link, LinkKind, Memory, MemoryKind, MemoryState
from memserve.domain.consolidating import LeftAlone, Merge, MergeKind
from memserve.errors import InvalidField
from memserve.memory.texts import histories
from memserve.memory.texts.core import Core, Intent, draft_of
from memserve.memory.texts.journal import APPEND_MAX
from memserve.memory.texts.records import Record, first_history, memory_key, tenant_key
from memserve.memory.texts.rules import KEYWORDS_MAX, LINKS_MAX, check_author, check_namespace

SOURCE = "consolidation"
"""Where a summary comes from."""

Vector = npt.NDArray[np.float32]
Records = Mapping[str, Record]
"""By memory id."""


@dataclass(frozen=True, slots=True)
class Consolidated:
    """What was done."""

    merges: tuple[Merge, ...]
    left_alone: tuple[LeftAlone, ...]
    """Of merges that were not done, because something was written since they were planned."""


class Consolidating(Core):
    """Sources keep their history, name what took their place, and can be restored."""

    async def consolidate(
        self, tenant: str, namespace: str, merges: Sequence[Merge], author: str = ""
    ) -> Consolidated:
        """Do all merges or none, in one atomic step.

        A merge is left out where one of its memories was written since it was planned. One that was done
        before is not done again.

        Raises InvalidField for more writes than fit into one step, NamespaceNotFound, and JournalFull.
        """
        check_namespace("namespace", namespace)
        check_author(author)
        if sum(1 + len(merge.sources) for merge in merges) > APPEND_MAX:
            raise InvalidField("merges", f"must change at most {APPEND_MAX} memories")

        async def store() -> Consolidated:
            await self._namespaces.require(tenant, [namespace])
            return await self._consolidate(tenant, namespace, merges, author)

        return await self._within(self._call_timeout_s, store, writes=True)

    async def _consolidate(
        self, tenant: str, namespace: str, merges: Sequence[Merge], author: str
    ) -> Consolidated:
        owner = tenant_key(tenant)
        ids = {each for merge in merges for each in (merge.memory_id, *_source_ids(merge))}
        keys = {each: memory_key(tenant, namespace, each) for each in ids}
        vectors = {
            merge.memory_id: await self.embed(tenant, merge.text, query=False)
            for merge in merges
            if not merge.version
        }
        while True:
            looks = await self._journal.look_many(dict.fromkeys(keys.values(), namespace), owner)
            known = await self._known(tenant, looks)
            records = {each: known[key] for each, key in keys.items() if key in known}
            done, fit, left = _sorted(merges, records)
            if not fit:
                return Consolidated(tuple(done), tuple(left))
            drafts = []
            for merge in fit:
                after = self._after(merge, records, namespace, owner, vectors, author)
                for memory_id, record in after.items():
                    key = keys[memory_id]
                    intent = Intent(replace(record, key=key))
                    drafts.append(draft_of(key, owner, records.get(memory_id), intent, looks[key]))
            last = min(look.last_sequence for look in looks.values())
            outcomes = await self._writer.write(tenant, drafts, last, together=True)
            for outcome in outcomes:
                if isinstance(outcome, Exception):
                    raise outcome
            if None not in outcomes:
                return Consolidated((*done, *fit), tuple(left))

    def _after(
        self,
        merge: Merge,
        records: Records,
        namespace: str,
        owner: str,
        vectors: Mapping[str, Vector],
        author: str,
    ) -> dict[str, Record]:
        """What a merge makes of each of its memories, by id."""
        now_s = self._now_s()
        sources = [records[each] for each in _source_ids(merge)]
        if merge.version:
            keeper = records[merge.memory_id]
            winner = replace(
                keeper,
                history=histories.updated(
                    keeper.history, _kept(merge, keeper.memory, sources, author, now_s)
                ),
            )
        else:
            memory = _summary(merge, namespace, sources, author, now_s)
            winner = Record("", owner, first_history(memory), vectors[merge.memory_id])
        after = {merge.memory_id: winner}
        for source in sources:
            history = histories.superseded(source.history, winner.memory, author, now_s)
            after[source.memory.memory_id] = replace(source, history=history)
        return after


def _source_ids(merge: Merge) -> list[str]:
    return [source.memory_id for source in merge.sources]


def _sorted(merges: Sequence[Merge], records: Records) -> tuple[list[Merge], list[Merge], list[LeftAlone]]:
    """Merges that are done already, those that can be done, and what is left alone."""
    done, fit, left = [], [], []
    for merge in merges:
        if all(_has_lost_to(records.get(each), merge.memory_id) for each in _source_ids(merge)):
            done.append(merge)
            continue
        wanted = {source.memory_id: source.version for source in merge.sources}
        if merge.version:
            wanted[merge.memory_id] = merge.version
        changed = [each for each, version in wanted.items() if not _is_as_planned(records.get(each), version)]
        if not merge.version and merge.memory_id in records:
            changed.append(merge.memory_id)
        if changed:
            left += [LeftAlone(each, "was written since the consolidation was planned") for each in changed]
        elif len(_derived_links(merge, [records[each].memory for each in wanted])) > LINKS_MAX:
            left += [LeftAlone(each, "has no room for the links of all") for each in wanted]
        else:
            fit.append(merge)
    return done, fit, left


def _has_lost_to(record: Record | None, winner: str) -> bool:
    by = record.memory.superseded_by if record is not None else None
    return by is not None and by.memory_id == winner


def _is_as_planned(record: Record | None, version: int) -> bool:
    return record is not None and record.memory.state is MemoryState.LIVE and record.memory.version == version


def _derived_links(merge: Merge, memories: Sequence[Memory]) -> list[Link]:
    """What the memory that stays, or the new one, was derived from: an erasure follows these links.

    A new one was derived from its sources, and what they were derived from is in it too.
    """
    names = {memory.memory_id for memory in memories} | {merge.memory_id}
    own = [] if merge.version else [Link(LinkKind.DERIVED_FROM, each) for each in _source_ids(merge)]
    theirs = [
        link
        for memory in memories
        for link in memory.links
        if link.kind is LinkKind.DERIVED_FROM and (link.namespace or link.memory_id not in names)
    ]
    return list(dict.fromkeys((*own, *theirs)))


def _kept(merge: Merge, keeper: Memory, sources: Sequence[Record], author: str, now_s: float) -> Memory:
    """The memory that stays, with what the others had."""
    names = {source.memory.memory_id for source in sources}
    derived = _derived_links(merge, (keeper, *(source.memory for source in sources)))
    links = [*derived, *(Link(LinkKind.SUPERSEDES, source.memory.memory_id) for source in sources)]
    own = [link for link in keeper.links if link.namespace or link.memory_id not in names]
    theirs = [
        link
        for source in sources
        for link in source.memory.links
        if link.namespace or link.memory_id not in (keeper.memory_id, *names)
    ]
    return replace(
        keeper,
        links=tuple(dict.fromkeys((*links, *own, *theirs)))[:LINKS_MAX],
        keywords=_keywords((keeper, *(source.memory for source in sources))),
        author=author,
        updated_s=now_s,
    )


def _summary(merge: Merge, namespace: str, sources: Sequence[Record], author: str, now_s: float) -> Memory:
    assert merge.kind is MergeKind.SUMMARY
    memories = [source.memory for source in sources]
    first = memories[0]
    links = _derived_links(merge, memories)
    links += [Link(LinkKind.SUPERSEDES, memory.memory_id) for memory in memories]
    return Memory(
        merge.memory_id,
        namespace,
        merge.text,
        SOURCE,
        _keywords(memories),
        now_s,
        kind=MemoryKind.FACT,
        metadata=first.metadata,
        author=author,
        valid_from_s=first.valid_from_s,
        valid_until_s=first.valid_until_s,
        strength=max(memory.strength for memory in memories),
        links=tuple(links)[:LINKS_MAX],
        updated_s=now_s,
    )


def _keywords(memories: Sequence[Memory]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word for memory in memories for word in memory.keywords))[:KEYWORDS_MAX]
