"""Memories by place and by link."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from memserve.domain import Link, LinkKind, Memory, MemoryState, ScoredMemory, Via
from memserve.errors import InvalidField
from memserve.memory.texts.core import Core, require_live
from memserve.memory.texts.records import memory_key, tenant_key
from memserve.memory.texts.rules import (
    LINK_DEPTH_MAX,
    NAMESPACES_MAX,
    POSITION_MAX,
    check_memory_id,
    check_namespace,
)
from memserve.memory.texts.store import RecordStore, Scope
from memserve.policy.recall.strength import Usage, effective_strength

MORE_MAX = 64
"""Memories that places and links may add to a search."""
BACKWARDS_MAX = 16
"""Memories that keep a link to one memory, and are followed backwards."""
PLACES_AT_ONCE = 256
FADING = 0.9
"""Of the score, for each step from the hit."""
ALL_KINDS = frozenset(LinkKind.known())
BY_LINK = frozenset({MemoryState.LIVE, MemoryState.SUPERSEDED})
ALL_STATES = frozenset(MemoryState.known())
DERIVED = frozenset({LinkKind.DERIVED_FROM})
DERIVED_MAX = 256
"""Memories that were derived from one."""
STRENGTH_DIGITS = 3
"""Memories of the same hour are equally strong, and stay in the order of their ids."""

Strengths = Callable[[str, Sequence[Memory], float], Awaitable[Mapping[tuple[str, str], float]]]
"""From a tenant, memories and the time: by namespace and id, how strongly each counts now."""
Name = tuple[str, str]
"""Namespace and id."""


@dataclass(frozen=True, slots=True)
class SearchParts:
    """What a search may have beside the store."""

    count_tokens: Callable[[str], int] | None = None
    """By the served model's tokenizer. None: every four bytes count as one."""
    strengths: Strengths | None = None
    """None: by what the writer says, and by age."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is wanted beside hits."""

    neighbours: int
    """Memories on either side in the same document or session."""
    link_depth: int
    link_kinds: frozenset[LinkKind]
    """Empty: all."""


class Following(Core):
    """Reads by place and by link. Nothing outside the namespaces that are named is looked at."""

    search_parts: SearchParts
    """Set by the owner, before the first search."""

    async def read_places(
        self, tenant: str, namespace: str, within: str, first: int, last: int
    ) -> list[Memory]:
        """The live memories of a document or session from one position to another, both included, in order.

        Raises NamespaceNotFound.
        """
        check_namespace("namespace", namespace)
        if not within:
            raise InvalidField("within", "must be the id of a document or session")
        if not 0 <= first <= last <= POSITION_MAX:
            raise InvalidField("first", f"must be 0 to last, and last at most {POSITION_MAX}")
        if last - first >= PLACES_AT_ONCE:
            raise InvalidField("last", f"must be less than {PLACES_AT_ONCE} after first")
        scope = Scope(tenant_key(tenant), (namespace,))

        async def read() -> list[Memory]:
            await self._namespaces.require(tenant, [namespace])
            self._require_complete()
            memories = await self._searched.read(
                tenant,
                lambda store: store.at_places(scope, within, first, last, timeout_s=self._call_timeout_s),
            )
            return await self._still_current(tenant, memories)

        return await self._within(self._call_timeout_s, read)

    async def follow_links(
        self,
        tenant: str,
        name: Name,
        *,
        kinds: frozenset[LinkKind] = frozenset(),
        depth: int = 1,
        namespaces: Sequence[str] = (),
    ) -> list[ScoredMemory]:
        """Memories that links lead to from one memory, forwards and backwards, nearest first, with `via`.

        kinds: empty for all. namespaces: where links may lead; empty for the memory's own.
        Raises NamespaceNotFound, MemoryNotFound.
        """
        namespace, memory_id = name
        scope = tuple(dict.fromkeys((namespace, *namespaces)))
        if len(scope) > NAMESPACES_MAX:
            raise InvalidField("namespaces", f"must be at most {NAMESPACES_MAX - 1} beside the memory's own")
        for each in scope:
            check_namespace("namespace", each)
        check_memory_id(memory_id)
        if not 1 <= depth <= LINK_DEPTH_MAX:
            raise InvalidField("depth", f"must be 1 to {LINK_DEPTH_MAX}")

        async def follow() -> list[ScoredMemory]:
            record = require_live(await self._current(tenant, namespace, memory_id), memory_id)
            start = ScoredMemory(record.memory, 1.0, None, None)
            return await self._around(tenant, scope, [start], Wishes(0, depth, kinds), self._now_s())

        return await self._within(self._call_timeout_s, follow)

    async def derived_from(self, tenant: str, name: Name) -> list[Memory]:
        """Memories of all the tenant's namespaces whose links say that they were derived from this one.

        Superseded and forgotten ones too; the memory itself need not be there any more. At most DERIVED_MAX.
        Raises VectorStoreUnavailable.
        """
        own = tenant_key(tenant)
        namespaces = list(await self._journal.counts(tenant))
        found: list[Memory] = []
        for start in range(0, len(namespaces), NAMESPACES_MAX):
            scope = Scope(own, tuple(namespaces[start : start + NAMESPACES_MAX]), ALL_STATES)
            found += await self._searched.read(
                tenant,
                lambda store, scope=scope: store.linking_to(  # type: ignore[misc]
                    scope, *name, DERIVED, DERIVED_MAX, timeout_s=self._call_timeout_s
                ),
            )
        return await self._still_current(tenant, found[:DERIVED_MAX])

    async def _around(
        self,
        tenant: str,
        namespaces: tuple[str, ...],
        hits: Sequence[ScoredMemory],
        wishes: Wishes,
        now_s: float,
    ) -> list[ScoredMemory]:
        """At most MORE_MAX memories beside the hits, those of the best hits first."""
        scope = Scope(tenant_key(tenant), namespaces)
        seen = {hit.memory.name for hit in hits}
        more: list[ScoredMemory] = []
        if wishes.neighbours:
            found = await self._searched.read(
                tenant,
                partial(_neighbours, scope=scope, hits=hits, wishes=wishes, timeout_s=self._call_timeout_s),
            )
            _add(more, seen, found)
        by_link = Scope(scope.tenant_key, namespaces, BY_LINK)
        front = [(hit, hit) for hit in hits]
        for depth in range(1, wishes.link_depth + 1):
            if not front or len(more) >= MORE_MAX:
                break
            found = await self._searched.read(
                tenant,
                partial(
                    _linked, tenant=tenant, scope=by_link, front=front, kinds=wishes.link_kinds or ALL_KINDS,
                    depth=depth, timeout_s=self._call_timeout_s,
                ),
            )  # fmt: skip
            front = _add(more, seen, found)
        current = {memory.name for memory in await self._still_current(tenant, [hit.memory for hit in more])}
        reached = [hit for hit in more if hit.memory.name in current]
        strengths = await self._strengths(tenant, [hit.memory for hit in reached], now_s)
        return [replace(hit, strength=strengths[hit.memory.name]) for hit in reached]

    async def _strengths(
        self, tenant: str, memories: Sequence[Memory], now_s: float
    ) -> Mapping[tuple[str, str], float]:
        if self.search_parts.strengths is not None:
            return await self.search_parts.strengths(tenant, memories, now_s)
        return {
            memory.name: round(
                effective_strength(memory.strength, memory.kind, Usage(max(0.0, now_s - memory.updated_s))),
                STRENGTH_DIGITS,
            )
            for memory in memories
        }

    async def _still_current(self, tenant: str, memories: Sequence[Memory]) -> list[Memory]:
        """Without those that a later write has replaced or taken away."""
        keys = {memory_key(tenant, *memory.name): memory for memory in memories}
        pending = await self._pending_of(list(keys))
        return [memory for key, memory in keys.items() if key not in pending or pending[key].memory == memory]


def _neighbours(
    store: RecordStore, *, scope: Scope, hits: Sequence[ScoredMemory], wishes: Wishes, timeout_s: float
) -> list[tuple[ScoredMemory, ScoredMemory]]:
    found = []
    for hit in hits:
        place = hit.memory.place
        if not place.within:
            continue
        own = Scope(scope.tenant_key, (hit.memory.namespace,))
        first, last = max(0, place.position - wishes.neighbours), place.position + wishes.neighbours
        for memory in store.at_places(own, place.within, first, last, timeout_s=timeout_s):
            via = Via(
                hit.memory.memory_id, hit.memory.namespace, None, abs(memory.place.position - place.position)
            )
            found.append((_beside(memory, hit, via), hit))
    return found


def _linked(
    store: RecordStore,
    *,
    tenant: str,
    scope: Scope,
    front: Sequence[tuple[ScoredMemory, ScoredMemory]],
    kinds: frozenset[LinkKind],
    depth: int,
    timeout_s: float,
) -> list[tuple[ScoredMemory, ScoredMemory]]:
    """front: what the step before led to, each with the hit that it began at."""
    targets: dict[str, tuple[ScoredMemory, Via]] = {}
    found: list[tuple[ScoredMemory, ScoredMemory]] = []
    for reached, hit in front:
        memory = reached.memory
        for link in memory.links:
            namespace = link.namespace or memory.namespace
            if link.kind in kinds and namespace in scope.namespaces:
                via = Via(hit.memory.memory_id, hit.memory.namespace, link.kind, depth)
                targets.setdefault(memory_key(tenant, namespace, link.memory_id), (hit, via))
    keys = list(targets)[: 4 * MORE_MAX]
    records = store.get_many(keys, timeout_s=timeout_s) if keys else {}
    for key in keys:
        if key in records and records[key].memory.state in scope.states:
            hit, via = targets[key]
            found.append((_beside(records[key].memory, hit, via), hit))
    for reached, hit in front:
        memory = reached.memory
        for other in store.linking_to(
            scope, memory.namespace, memory.memory_id, kinds, BACKWARDS_MAX, timeout_s=timeout_s
        ):
            kind = next((link.kind for link in other.links if _leads_to(link, other, memory, kinds)), None)
            if kind is not None:
                via = Via(hit.memory.memory_id, hit.memory.namespace, kind, depth, backwards=True)
                found.append((_beside(other, hit, via), hit))
    return found


def _leads_to(link: Link, owner: Memory, target: Memory, kinds: frozenset[LinkKind]) -> bool:
    return link.kind in kinds and (link.namespace or owner.namespace, link.memory_id) == target.name


def _beside(memory: Memory, hit: ScoredMemory, via: Via) -> ScoredMemory:
    return ScoredMemory(memory, hit.score * FADING ** max(1, via.depth), None, None, via=via)


def _add(
    more: list[ScoredMemory], seen: set[Name], found: Sequence[tuple[ScoredMemory, ScoredMemory]]
) -> list[tuple[ScoredMemory, ScoredMemory]]:
    """Add what is not there yet. Returns it."""
    added = []
    for reached, hit in found:
        name = reached.memory.name
        if name not in seen and len(more) < MORE_MAX:
            seen.add(name)
            more.append(reached)
            added.append((reached, hit))
    return added
