"""How much of a prompt is in Redis, for the gateway: one round trip, within a time budget."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from memserve.kv.breaker import CircuitBreaker
from memserve.kv.keys import redis_key


class PrefixLookup:
    """Counts the leading chunks of a prompt that Redis holds. While Redis does not answer, asks it once per `pause_s` only."""

    def __init__(self, redis_url: str, *, budget_s: float = 0.02, pause_s: float = 1.0) -> None:
        """budget_s: for a whole look-up, the connection included."""
        self._redis: Redis = Redis.from_url(redis_url, retry=Retry(NoBackoff(), 0))
        self._budget_s = budget_s
        self._breaker = CircuitBreaker(failures_to_open=2, pause_s=pause_s)

    async def present(self, namespace: str, chunk_keys: Sequence[bytes]) -> int | None:
        """How many of the leading chunks are in Redis.

        namespace: `CacheNamespace.digest`. chunk_keys: [chunks] from `memserve.kv.keys.chunk_keys`.
        Does not slide their time to live: looking is not using.
        Returns 0 to len(chunk_keys); None when Redis did not answer in time. Does not raise for Redis's sake.
        """
        if not chunk_keys:
            return 0
        if not self._breaker.allows(time.monotonic()):
            return None
        try:
            async with asyncio.timeout(self._budget_s), self._redis.pipeline(transaction=False) as pipeline:
                for key in chunk_keys:
                    pipeline.exists(redis_key(namespace, key))
                found = await pipeline.execute()
        except (RedisError, OSError):  # TimeoutError, which asyncio.timeout raises, is an OSError
            self._breaker.failed(time.monotonic())
            return None
        self._breaker.succeeded()
        return next((chunks for chunks, present in enumerate(found) if not present), len(found))

    async def close(self) -> None:
        await self._redis.aclose()
