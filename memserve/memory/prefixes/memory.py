"""Activation memory as the gateway governs it: what is in Redis for a tenant, kept, freed and counted. The
workers fill it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from redis.exceptions import RedisError

from memserve.errors import CacheUnavailable, PinLimitReached, PrefixNotStored
from memserve.kv.ledger.ledger import PAGE, Ledger
from memserve.kv.ledger.records import ALL, Quotas, Usage
from memserve.kv.transport.limits import CacheLimits
from memserve.kv.transport.servers import CacheServers
from memserve.turns import FairThreads, leave_one, on_own_thread

T = TypeVar("T")

# Of a tenant's quota (or of the cache's, where tenants have none), and of the cache's for all pins together:
# what is pinned can be given to nobody else.
PINNED_SHARE = 0.5
# For each answer of Redis: control is rare and may wait.
TIMEOUT_S = 5.0
# For a whole call, the turn it waits for included. To free all of a tenant's KV takes many answers.
CALL_TIMEOUT_S = 30.0
THREADS = 4


class ActivationMemory:
    """The chunks of all tenants. Every method raises CacheUnavailable when Redis does not answer.

    members: from `memserve.kv.keys.member`, a prefix's chunks from its beginning on.
    """

    def __init__(self, redis_url: str, *, ttl_s: int, quotas: Quotas) -> None:
        """redis_url: as `memserve.kv.transport.url.parse_cache_url` takes it. ttl_s: of an unused chunk. Does
        not connect.
        """
        self._servers = CacheServers(
            redis_url,
            CacheLimits(io_s=TIMEOUT_S, lookup_s=TIMEOUT_S, connect_s=TIMEOUT_S, failures_to_open=3),
        )
        self._ledger = Ledger(self._servers, ttl_s=ttl_s, quotas=quotas)
        self._threads = FairThreads("cache-control", THREADS, share=leave_one)

    async def pin(self, tenant: str, members: Sequence[str], seconds: float) -> Usage:
        """Keep a prefix from eviction and expiry. Returns the tenant's usage after it.

        Raises PrefixNotStored when not all of it is in Redis, PinLimitReached when the tenant has pinned too
        much.
        """
        quotas = self._ledger.quotas
        limit = int((quotas.tenant_bytes or quotas.cache_bytes) * PINNED_SHARE)
        limit_all = int(quotas.cache_bytes * PINNED_SHARE)
        done, pinned_bytes, there = await self._ask(
            tenant,
            lambda: (
                self._ledger.pin(
                    members, tenant, seconds=seconds, limit_bytes=limit, limit_all_bytes=limit_all
                )
                if members
                else (False, 0, 0)
            ),
        )
        if there < len(members) or not members:
            raise PrefixNotStored(there, len(members))
        if not done:
            raise PinLimitReached(tenant, pinned_bytes, limit)
        return await self._ask(tenant, lambda: self._ledger.usage(tenant))

    async def present(self, tenant: str, members: Sequence[str]) -> int | None:
        """How many leading chunks of a prefix are in Redis. None when it does not answer."""
        try:
            return await self._ask(tenant, lambda: self._ledger.present(members))
        except CacheUnavailable:
            return None

    async def unpin(self, tenant: str, members: Sequence[str]) -> int:
        """Returns how many chunks were pinned."""
        return await self._ask(tenant, lambda: self._ledger.unpin(members, tenant)) if members else 0

    async def evict_prefix(self, tenant: str, members: Sequence[str]) -> tuple[int, int]:
        """Returns how many chunks were removed, and how many stay because they are pinned."""
        return await self._evict(
            tenant, ALL, lambda: [members[start : start + PAGE] for start in range(0, len(members), PAGE)]
        )

    async def evict_module(self, tenant: str, digest: str) -> tuple[int, int]:
        """As `evict_prefix`, for all that was computed with a module version."""
        return await self._evict(tenant, digest, lambda: self._ledger.members(module=digest))

    async def evict_tenant(self, tenant: str) -> tuple[int, int]:
        """As `evict_prefix`, for all that a tenant has."""
        return await self._evict(tenant, ALL, lambda: self._ledger.members(tenant=tenant))

    async def usage(self, tenant: str) -> tuple[Usage, Usage]:
        """Of the tenant, and of all together."""
        return await self._ask(tenant, lambda: (self._ledger.usage(tenant), self._ledger.usage()))

    @property
    def quotas(self) -> tuple[int, int]:
        """Bytes of a tenant, and of all together; 0 for none."""
        return self._ledger.quotas.tenant_bytes, self._ledger.quotas.cache_bytes

    async def close(self) -> None:
        self._threads.close()
        await on_own_thread(self._servers.close)

    async def _evict(
        self, tenant: str, module: str, pages: Callable[[], Iterable[Sequence[str]]]
    ) -> tuple[int, int]:
        def remove() -> tuple[int, int]:
            removed = pinned = 0
            for page in list(pages()):
                condemned, kept = self._ledger.condemn(page, tenant=tenant, module=module)
                self._ledger.remove_values(condemned)
                removed, pinned = removed + len(condemned), pinned + kept
            return removed, pinned

        return await self._ask(tenant, remove)

    async def _ask(self, tenant: str, question: Callable[[], T]) -> T:
        """Off the event loop: a rare exchange, with a client that blocks. One that is given up holds its
        thread to its own end.
        """
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                return await self._threads.run(tenant, question)
        except (RedisError, OSError) as error:
            raise CacheUnavailable((str(error) or type(error).__name__).splitlines()[0]) from error
