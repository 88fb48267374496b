"""How much of a prompt is in Redis, for the gateway: one round trip, within a time budget."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from memserve.kv.keys import redis_key
from memserve.kv.transport.breaker import CircuitBreaker
from memserve.kv.transport.server import MISPLACED
from memserve.kv.transport.topology import Topology
from memserve.kv.transport.url import Address, parse_cache_url
from memserve.tracing import child_span
from memserve.turns import on_own_thread

# For each answer about the topology. No request waits this long.
_TOPOLOGY_TIMEOUT_S = 1.0
_REDIS = {"db.system.name": "redis", "db.operation.name": "EXISTS"}
_FIRST_TOPOLOGY_POLL_S = 0.001


@dataclass(frozen=True, slots=True)
class _Server:
    client: Redis
    breaker: CircuitBreaker


class PrefixLookup:
    """Counts the leading chunks of a prompt that Redis holds.

    A server that does not answer is asked only once per `pause_s`.
    """

    def __init__(self, redis_url: str, *, budget_s: float = 0.02, pause_s: float = 1.0) -> None:
        """Does not connect.

        redis_url: as `parse_cache_url` takes it, which raises ValueError.
        budget_s: for a whole look-up, connections included.
        """
        self._url = parse_cache_url(redis_url)
        self._budget_s = budget_s
        self._pause_s = pause_s
        self._topology = Topology(self._url, timeout_s=_TOPOLOGY_TIMEOUT_S, pause_s=pause_s)
        self._servers: dict[Address, _Server] = {}
        self._seen = self._topology.addresses

    async def present(self, namespace: str, chunk_keys: Sequence[bytes]) -> int | None:
        """How many of the leading chunks are in Redis.

        Every server that holds any of the chunks is asked once, all servers at the same time. The chunks of a
        server that does not answer count as missing. Looking does not slide a chunk's time to live, because
        nothing is used.

        namespace: `CacheNamespace.digest`.
        chunk_keys: [chunks] from `memserve.kv.keys.chunk_keys`.
        Returns 0 to len(chunk_keys); None when no server answered in time. No error of Redis is raised.
        """
        if not chunk_keys:
            return 0
        deadline_s = asyncio.get_running_loop().time() + self._budget_s
        if not self._topology.tried:
            await self._first_topology(deadline_s)
        names = [redis_key(namespace, key) for key in chunk_keys]
        groups = self._topology.groups(names)
        await self._drop_servers_that_left()
        with child_span("EXISTS redis", {**_REDIS, "db.operation.batch.size": len(names)}):
            answers = await asyncio.gather(
                *(
                    self._ask(address, [names[number] for number in numbers], deadline_s)
                    for address, numbers in groups.items()
                )
            )
        if all(answer is None for answer in answers):
            return None
        is_present = [False] * len(names)
        for numbers, answer in zip(groups.values(), answers, strict=True):
            for number, exists in zip(numbers, answer or (), strict=False):
                is_present[number] = exists
        return next((chunks for chunks, exists in enumerate(is_present) if not exists), len(is_present))

    async def _first_topology(self, deadline_s: float) -> None:
        """At the first use, wait until the topology's thread knows the servers.

        This loop's thread never blocks.
        """
        self._topology.changed()
        while not self._topology.tried and asyncio.get_running_loop().time() < deadline_s:
            await asyncio.sleep(_FIRST_TOPOLOGY_POLL_S)

    async def close(self) -> None:
        await on_own_thread(self._topology.close)
        servers, self._servers = self._servers, {}
        for server in servers.values():
            await server.client.aclose()

    async def _ask(self, address: Address, names: Sequence[str], deadline_s: float) -> list[bool] | None:
        """Which of the names one server has. None: it did not answer in time, or is not asked now.

        deadline_s: on the loop's clock.
        """
        server = self._server(address)
        if not server.breaker.allows(time.monotonic()):
            return None
        try:
            async with asyncio.timeout_at(deadline_s), server.client.pipeline(transaction=False) as pipeline:
                for name in names:
                    pipeline.exists(name)
                replies = await pipeline.execute(raise_on_error=False)
        except (RedisError, OSError):  # TimeoutError, which asyncio.timeout_at raises, is an OSError
            server.breaker.failed(time.monotonic())
            self._topology.changed()
            return None
        server.breaker.succeeded()
        if any(isinstance(reply, MISPLACED) for reply in replies):
            self._topology.changed()
        return [reply == 1 for reply in replies]

    def _server(self, address: Address) -> _Server:
        if address not in self._servers:
            # No socket_timeout: `_ask` bounds the whole exchange, and a socket_timeout can lose a
            # cancellation (see memserve/registry/client.py).
            client: Redis = Redis(
                **self._url.arguments(address), socket_timeout=None, retry=Retry(NoBackoff(), 0)
            )
            self._servers[address] = _Server(
                client, CircuitBreaker(failures_to_open=2, pause_s=self._pause_s)
            )
        return self._servers[address]

    async def _drop_servers_that_left(self) -> None:
        addresses = self._topology.addresses
        if addresses is self._seen:
            return
        self._seen = addresses
        left = [self._servers.pop(address) for address in list(self._servers) if address not in addresses]
        for server in left:
            await server.client.connection_pool.disconnect(inuse_connections=False)
