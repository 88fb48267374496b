"""Reads by id, lists, counts, and the feed of changes."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
import math
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from functools import partial

from memserve.domain import (
    Memory,
    MemoryChange,
    MemoryHistory,
    MemoryKind,
    MemoryPage,
    MemoryState,
    MemoryUsage,
    NamespaceUsage,
)
from memserve.errors import (
    InvalidField,
    MemoryNotFound,
    MemserveError,
    NamespaceNotFound,
    VectorStoreUnavailable,
    VersionNotFound,
)
from memserve.memory.texts import histories
from memserve.memory.texts.core import Core
from memserve.memory.texts.index import MILVUS_ERRORS
from memserve.memory.texts.journal_entries import Totals
from memserve.memory.texts.records import Record, tenant_key
from memserve.memory.texts.requests import ListQuery
from memserve.memory.texts.rules import NAMESPACES_MAX, check_memory_id, check_namespace
from memserve.memory.texts.store import ListOrder, Scope
from memserve.memory.texts.writing import NOT_COUNTED
from memserve.policy.recall.expressions import Expression, column_bounds, filter_values, parse_filter
from memserve.registry.client import patiently

PAGE_MAX = 256
"""Memories on a page of a list."""
LOOKED_AT_MAX = 4096
"""Memories that one call looks at. So a page may have less than its limit, and not be the last."""
WATCH_EVERY_S = 0.25
WATCH_PAGE = 256
TOKEN_MAX = 2048


class Reads(Core):
    """None of it writes."""

    async def get(
        self,
        tenant: str,
        namespace: str,
        memory_id: str,
        *,
        version: int | None = None,
        as_of_s: float | None = None,
    ) -> Memory:
        """The current version, an earlier one, or the one that was current at a time.

        Raises NamespaceNotFound, MemoryNotFound for what is, or was then, forgotten, and VersionNotFound.
        """
        if version is not None and as_of_s is not None:
            raise InvalidField("as_of_s", "must not stand beside version")
        if as_of_s is not None and not math.isfinite(as_of_s):
            raise InvalidField("as_of_s", "must be seconds since the epoch")
        history = await self.history(tenant, namespace, memory_id)
        if version is not None:
            memory = histories.version_of(history, version)
            if memory is None:
                raise VersionNotFound(memory_id, f"version {version}")
            return memory
        memory = history.current if as_of_s is None else histories.as_of(history, as_of_s)
        if memory is None:
            raise VersionNotFound(memory_id, "version of that time")
        if memory.state is MemoryState.FORGOTTEN:
            raise MemoryNotFound(memory_id)
        return memory

    async def history(self, tenant: str, namespace: str, memory_id: str) -> MemoryHistory:
        """All versions that are kept, also of a forgotten memory.

        Raises NamespaceNotFound, MemoryNotFound.
        """
        check_namespace("namespace", namespace)
        check_memory_id(memory_id)

        async def read() -> MemoryHistory:
            return (await self._current(tenant, namespace, memory_id)).history

        return await self._within(self._call_timeout_s, read)

    async def list_memories(self, tenant: str, query: ListQuery) -> MemoryPage:
        """A page of the memories that a filter lets through. Raises NamespaceNotFound, and
        VectorStoreUnavailable while the local index is built again.
        """
        scope, expression = list_scope(tenant, query)
        if not 1 <= query.limit <= PAGE_MAX:
            raise InvalidField("limit", f"must be 1 to {PAGE_MAX}")
        after = _read_token(query)

        async def read() -> MemoryPage:
            await self._namespaces.require(tenant, scope.namespaces)
            found: list[Memory] = []
            position, looked_at = after, 0
            while len(found) < query.limit and looked_at < LOOKED_AT_MAX:
                asked = min(PAGE_MAX, LOOKED_AT_MAX - looked_at)
                page = await self._page(tenant, scope, query, asked, position)
                for stored, current in page:
                    position = _position(stored, query.order)
                    looked_at += 1
                    if current is not None and matches(current.memory, scope, expression):
                        found.append(current.memory)
                        if len(found) == query.limit:
                            break
                if len(page) < asked and len(found) < query.limit:
                    return MemoryPage(tuple(found), "")
            return MemoryPage(tuple(found), _token(query, position))

        return await self._within(self._call_timeout_s, read)

    async def _page(
        self,
        tenant: str,
        scope: Scope,
        query: ListQuery,
        limit: int,
        after: tuple[object, str, str] | None,
    ) -> list[tuple[Record, Record | None]]:
        """The store's next records, each with what it is now: a write may not be in the store yet."""
        self._require_complete()
        if scope.kinds is not None and not scope.kinds:
            return []  # the filter lets no kind through
        page = await self._searched.read(
            tenant,
            lambda store: store.page(
                scope,
                query.order,
                limit,
                descending=query.descending,
                after=after,
                timeout_s=self._call_timeout_s,
            ),
        )
        pending = await self._pending_of([record.key for record in page])
        return [(record, pending[record.key].record if record.key in pending else record) for record in page]

    async def usage(self, tenant: str) -> MemoryUsage:
        """What each namespace holds, by name, and the tenant's quotas. Counted at every write."""
        self._require_open()
        usages = await self._journal.usage(tenant)
        self._require_counted()
        quotas = self._journal.quotas
        return MemoryUsage(tuple(usages), quotas.memories, quotas.namespaces, quotas.bytes)

    async def namespace_usage(self, tenant: str, namespace: str) -> NamespaceUsage:
        """Raises NamespaceNotFound."""
        check_namespace("namespace", namespace)
        for usage in (await self.usage(tenant)).namespaces:
            if usage.namespace == namespace:
                return usage
        raise NamespaceNotFound(namespace)

    async def counts(self, tenant: str) -> dict[str, int]:
        """The number of live memories by namespace, in the order of names.

        Namespaces whose memories are all forgotten are part of it.
        """
        self._require_open()
        counts = await self._journal.counts(tenant)
        self._require_counted()
        return dict(sorted(counts.items()))

    async def count(self, tenant: str, namespace: str) -> int:
        """The number of live memories in the namespace. Raises NamespaceNotFound."""
        check_namespace("namespace", namespace)
        counts = await self.counts(tenant)
        if namespace not in counts:
            raise NamespaceNotFound(namespace)
        return counts[namespace]

    async def list_namespaces(self, tenant: str) -> list[str]:
        """The tenant's namespaces, by name. Namespaces whose memories are all forgotten are part of it."""
        return list(await self.counts(tenant))

    async def last_change(self, tenant: str) -> int:
        """The sequence of the tenant's newest change, at any gateway. Raises RegistryUnavailable."""
        return await self._journal.last_change(tenant)

    async def watch(
        self, tenant: str, after_sequence: int | None = None
    ) -> AsyncGenerator[MemoryChange, None]:
        """The tenant's changes as they happen, without end.

        after_sequence: of the last change that the caller has seen. None: from now on.
        Raises ChangesMissed when the feed does not reach back so far, or the caller is too slow for it.
        """
        self._require_open()
        last = await self._journal.last_change(tenant) if after_sequence is None else after_sequence
        if last < 0:
            raise InvalidField("after_sequence", "must not be negative")
        while not self._closed:
            changes = await patiently(partial(self._journal.changes, tenant, last, WATCH_PAGE))
            for change in changes:
                last = change.sequence
                yield change
            if len(changes) < WATCH_PAGE:
                await asyncio.sleep(WATCH_EVERY_S)
        self._require_open()

    async def answers(self, tenant: str, timeout_s: float) -> bool:
        """Whether the searched store answers a look-up within this time, in the tenant's turn."""
        nobody = "0" * 64
        try:
            async with asyncio.timeout(timeout_s):
                await self._searched.read(tenant, lambda store: store.get_many([nobody], timeout_s=timeout_s))
        except (*MILVUS_ERRORS, MemserveError):  # TimeoutError is an OSError
            return False
        return True

    async def waiting_writes(self) -> int:
        """How many writes of all tenants are in the journal."""
        return (await self.totals()).pending

    async def totals(self) -> Totals:
        """What the registry counts of all tenants."""
        self._require_open()
        return await self._journal.totals()

    def lost(self, tenant: str, namespaces: tuple[str, ...] | None = None) -> int:
        """How many of the tenant's memories are counted and missing in Milvus, whose files are then damaged.

        namespaces: None for all of the tenant's.
        """
        lost = {
            name: memories
            for (owner, name), memories in self.settling.figures.lost.items()
            if owner == tenant_key(tenant)
        }
        return sum(lost.get(name, 0) for name in (lost if namespaces is None else set(namespaces)))

    def _require_counted(self) -> None:
        if not self.settling.is_counted:
            raise VectorStoreUnavailable(NOT_COUNTED)


def list_scope(tenant: str, query: ListQuery) -> tuple[Scope, Expression | None]:
    """Where a list looks, and what it lets through. Raises InvalidField."""
    namespaces = tuple(dict.fromkeys(query.namespaces))
    if not 1 <= len(namespaces) <= NAMESPACES_MAX:
        raise InvalidField("namespaces", f"must be 1 to {NAMESPACES_MAX}")
    for namespace in namespaces:
        check_namespace("namespaces", namespace)
    if query.order not in ListOrder.known():
        raise InvalidField("order", f"must be one of {', '.join(ListOrder.known())}")
    if not query.states or not set(query.states) <= set(MemoryState.known()):
        raise InvalidField("states", f"must be some of {', '.join(MemoryState.known())}")
    if not set(query.kinds) <= set(MemoryKind.known()):
        raise InvalidField("kinds", f"must be some of {', '.join(MemoryKind.known())}")
    for field in ("created_from_s", "created_until_s"):
        time_s = getattr(query, field)
        if time_s is not None and not math.isfinite(time_s):
            raise InvalidField(field, "must be seconds since the epoch")
    scope = Scope(
        tenant_key(tenant),
        namespaces,
        frozenset(query.states),
        frozenset(query.kinds) or None,
        query.created_from_s,
        query.created_until_s,
    )
    if not query.filter:
        return scope, None
    expression = parse_filter("filter", query.filter)
    return narrowed(scope, expression), expression


def narrowed(scope: Scope, expression: Expression) -> Scope:
    """The scope, without memories that the filter cannot let through."""
    bounds = column_bounds(expression)
    kinds = scope.kinds
    if bounds.kinds is not None:
        named = frozenset(kind for kind in MemoryKind.known() if kind.value in bounds.kinds)
        kinds = named if kinds is None else kinds & named
    first = max(bounds.created_from_s, -math.inf if scope.created_from_s is None else scope.created_from_s)
    return replace(scope, kinds=kinds, created_from_s=None if math.isinf(first) else first)


def matches(memory: Memory, scope: Scope, expression: Expression | None) -> bool:
    """Whether a memory of the scope's namespaces is in the scope, and the filter lets it through."""
    return (
        memory.state in scope.states
        and (scope.kinds is None or memory.kind in scope.kinds)
        and (expression is None or expression.evaluate(filter_values(memory)).holds)
    )


_VALUE: dict[ListOrder, Callable[[Memory], object]] = {
    ListOrder.CREATED: lambda memory: memory.created_s,
    ListOrder.UPDATED: lambda memory: memory.updated_s,
    ListOrder.MEMORY_ID: lambda memory: memory.memory_id,
    ListOrder.PLACE: lambda memory: (memory.place.within, memory.place.position),
}


def _position(record: Record, order: ListOrder) -> tuple[object, str, str]:
    memory = record.memory
    return _VALUE[order](memory), memory.namespace, memory.memory_id


def _digest(query: ListQuery) -> str:
    asked = (
        sorted(set(query.namespaces)), query.order, query.descending, query.filter, sorted(query.kinds),
        sorted(query.states), query.created_from_s, query.created_until_s,
    )  # fmt: skip
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


def _token(query: ListQuery, position: tuple[object, str, str] | None) -> str:
    return base64.urlsafe_b64encode(json.dumps([_digest(query), position]).encode()).decode()


def _read_token(query: ListQuery) -> tuple[object, str, str] | None:
    """A token says where to go on, and reaches nothing that the query does not. Raises InvalidField."""
    if not query.page_token:
        return None
    refusal = InvalidField("page_token", "must be the token of the page before, with the same query")
    if len(query.page_token) > TOKEN_MAX:
        raise refusal
    try:
        digest, position = json.loads(base64.urlsafe_b64decode(query.page_token.encode("ascii")))
        if position is None:
            return None
        value, namespace, memory_id = position
    except (ValueError, TypeError, binascii.Error, RecursionError):
        raise refusal from None
    texts = isinstance(namespace, str) and isinstance(memory_id, str)
    if digest != _digest(query) or not texts or not _is_value(query.order, value):
        raise refusal
    return (tuple(value) if isinstance(value, list) else value), namespace, memory_id


def _is_value(order: ListOrder, value: object) -> bool:
    if order is ListOrder.MEMORY_ID:
        return isinstance(value, str)
    if order is ListOrder.PLACE:
        return (
            isinstance(value, list)
            and len(value) == 2
            and isinstance(value[0], str)
            and type(value[1]) is int
            and abs(value[1]) < 2**62
        )
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
