"""Activation memory for the gateway: the KV that a tenant has in Redis is kept, freed and counted.

The workers write the KV.
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

# The share of a tenant's quota that the tenant may pin. Without quotas of tenants it is a share of the
# cache's quota. All pins together have at most this share of the cache's quota. Pinned room serves no other
# tenant.
PINNED_SHARE = 0.5
# The limit for each answer of Redis. These calls are rare and may wait.
TIMEOUT_S = 5.0
# The limit for a whole call, with the wait for a thread. Freeing all KV of a tenant takes many answers.
CALL_TIMEOUT_S = 30.0
THREADS = 4


class ActivationMemory:
    """The chunks of all tenants.

    members: the chunks of a prefix from its beginning on, as `memserve.kv.keys.member` names them.
    Every method except `present` raises CacheUnavailable when Redis does not answer.
    """

    def __init__(self, redis_url: str, *, ttl_s: int, quotas: Quotas) -> None:
        """Does not connect.

        redis_url: as `memserve.kv.transport.url.parse_cache_url` takes it.
        ttl_s: how long an unused chunk is kept.
        """
        self._servers = CacheServers(
            redis_url,
            CacheLimits(io_s=TIMEOUT_S, lookup_s=TIMEOUT_S, connect_s=TIMEOUT_S, failures_to_open=3),
        )
        self._ledger = Ledger(self._servers, ttl_s=ttl_s, quotas=quotas)
        self._threads = FairThreads("cache-control", THREADS, share=leave_one)

    async def pin(self, tenant: str, members: Sequence[str], seconds: float) -> Usage:
        """Keep a prefix from eviction and expiry for `seconds`. Returns the tenant's usage after the pin.

        Raises PrefixNotStored when a part of the prefix is not in Redis, and when it has no full chunk.
        Raises PinLimitReached when the tenant or all tenants together would pin too much.
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
        """The number of leading chunks of a prefix that are in Redis. None: Redis does not answer."""
        try:
            return await self._ask(tenant, lambda: self._ledger.present(members))
        except CacheUnavailable:
            return None

    async def unpin(self, tenant: str, members: Sequence[str]) -> int:
        """Take back the pin of a prefix. Returns the number of chunks that were pinned."""
        return await self._ask(tenant, lambda: self._ledger.unpin(members, tenant)) if members else 0

    async def evict_prefix(self, tenant: str, members: Sequence[str]) -> tuple[int, int]:
        """Remove a prefix from Redis, except its pinned chunks.

        Returns the number of removed chunks, and the number of pinned chunks.
        """
        return await self._evict(
            tenant, ALL, lambda: [members[start : start + PAGE] for start in range(0, len(members), PAGE)]
        )

    async def evict_module(self, tenant: str, digest: str) -> tuple[int, int]:
        """The same as `evict_prefix`, for all chunks that the tenant has computed with a module version."""
        return await self._evict(tenant, digest, lambda: self._ledger.members(module=digest))

    async def module_chunks(self, tenant: str, digest: str) -> int:
        """How many chunks the tenant has in Redis that were computed with a module version."""

        def count() -> int:
            return sum(self._ledger.count_of(page, tenant) for page in self._ledger.members(module=digest))

        return await self._ask(tenant, count)

    async def evict_tenant(self, tenant: str) -> tuple[int, int]:
        """The same as `evict_prefix`, for all chunks of the tenant."""
        return await self._evict(tenant, ALL, lambda: self._ledger.members(tenant=tenant))

    async def usage(self, tenant: str) -> tuple[Usage, Usage]:
        """The usage of the tenant, and of all tenants together."""
        return await self._ask(tenant, lambda: (self._ledger.usage(tenant), self._ledger.usage()))

    @property
    def quotas(self) -> tuple[int, int]:
        """The quotas in bytes of a tenant, and of all tenants together. 0: no quota."""
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
        """Ask Redis on a thread, because the client blocks.

        A question that is given up holds its thread until Redis answers it or the client gives up.
        """
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                return await self._threads.run(tenant, question)
        except (RedisError, OSError) as error:
            raise CacheUnavailable((str(error) or type(error).__name__).splitlines()[0]) from error
