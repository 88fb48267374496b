"""Keeps erasures in the registry Redis. Keys, where T is a hash of a tenant's name:

- memserve:erasures:T:records  hash: by id, the record
- memserve:erasures:T:ids      zset: ids by when they were asked for
- memserve:erasures:T:erased   zset: keys of erased memories by when that was
- memserve:erasures:pending    zset: [T, id] as JSON by when somebody is to go on with it
- memserve:erasures:turn:<id>  whoever works on it, for a while
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence

from memserve.domain.lineage import ErasureState
from memserve.memory.erasures.records import ErasureRecord, read_record, record_of
from memserve.records import LenientReader
from memserve.registry.client import answering, close_client, registry_client

log = logging.getLogger("memserve.memory.erasures")

PREFIX = "memserve:erasures:"
PENDING = f"{PREFIX}pending"
KEPT_MAX = 1000
"""Of one tenant. Of more, the oldest that are done leave."""
ERASED_KEPT_S = 14 * 86_400.0
"""How long it is known that a memory was erased. No training takes longer."""
TURN_S = 20.0
"""Two gateways that do one step at once do it once, so that a long step does no harm."""
DUE_MAX = 16
ERASED_AT_ONCE = 512


class KeptErasures:
    """Of all tenants. Every method raises RegistryUnavailable."""

    def __init__(self, redis_url: str) -> None:
        self._redis = registry_client(redis_url)
        self._reader = LenientReader(log)

    async def close(self) -> None:
        await close_client(self._redis)

    async def save(self, record: ErasureRecord, now_s: float, *, again_s: float = TURN_S) -> None:
        """Keep it as it is now. again_s: when another gateway goes on with it, where nobody saves it."""
        own, erasure = _own(record.tenant), record.erasure
        pending = json.dumps([record.tenant, erasure.erasure_id])
        async with answering(), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hset(f"{own}:records", erasure.erasure_id, record_of(record))
            pipeline.zadd(f"{own}:ids", {erasure.erasure_id: erasure.at_s})
            if erasure.state is ErasureState.DONE:
                pipeline.zrem(PENDING, pending)
            else:
                pipeline.zadd(PENDING, {pending: now_s + again_s})
            await pipeline.execute()

    async def mark_erased(self, tenant: str, keys: Sequence[str], now_s: float) -> None:
        """Note that these memories are erased from now on. keys: as of `memory.texts.records.memory_key`."""
        erased = f"{_own(tenant)}:erased"
        for start in range(0, len(keys), ERASED_AT_ONCE):
            some = dict.fromkeys(keys[start : start + ERASED_AT_ONCE], now_s)
            async with answering(), self._redis.pipeline(transaction=True) as pipeline:
                pipeline.zadd(erased, some)
                pipeline.zremrangebyscore(erased, "-inf", now_s - ERASED_KEPT_S)
                pipeline.expire(erased, int(ERASED_KEPT_S))
                await pipeline.execute()

    async def erased_since(self, tenant: str, keys: Sequence[str], since_s: float) -> list[str]:
        """Those of these memories that were erased since then."""
        erased: list[str] = []
        for start in range(0, len(keys), ERASED_AT_ONCE):
            some = list(keys[start : start + ERASED_AT_ONCE])
            async with answering():
                scores = await self._redis.zmscore(f"{_own(tenant)}:erased", some)
            erased += [key for key, at_s in zip(some, scores, strict=True) if at_s and at_s >= since_s]
        return erased

    async def get(self, tenant: str, erasure_id: str) -> ErasureRecord | None:
        """None: there is none, or it is no longer kept. Raises UnreadableRecord too."""
        async with answering():
            text = await self._redis.hget(f"{_own(tenant)}:records", erasure_id)
        return read_record(text) if text else None

    async def newest(self, tenant: str, most: int) -> list[ErasureRecord]:
        """The newest first."""
        own = _own(tenant)
        async with answering():
            ids = await self._redis.zrevrange(f"{own}:ids", 0, most - 1)
            texts = await self._redis.hmget(f"{own}:records", ids) if ids else []
        return self._reader.read([text for text in texts if text], read_record)

    async def due(self, now_s: float) -> list[tuple[str, str]]:
        """Tenant and id of those that somebody is to go on with."""
        async with answering():
            members = await self._redis.zrangebyscore(PENDING, "-inf", now_s, start=0, num=DUE_MAX)
        return [(str(tenant), str(erasure_id)) for tenant, erasure_id in map(json.loads, members)]

    async def take_turn(self, erasure_id: str, token: str, seconds: float = TURN_S) -> bool:
        """Whether this caller works on it from now on, for so long. The same token prolongs it."""
        key = f"{PREFIX}turn:{erasure_id}"
        async with answering():
            if await self._redis.set(key, token, nx=True, px=int(seconds * 1000)):
                return True
            if await self._redis.get(key) != token:
                return False
            return bool(await self._redis.pexpire(key, int(seconds * 1000)))

    async def end_turn(self, erasure_id: str) -> None:
        async with answering():
            await self._redis.delete(f"{PREFIX}turn:{erasure_id}")

    async def postpone(self, tenant: str, erasure_id: str, until_s: float) -> None:
        """Nobody goes on with it before, where it is still to be gone on with."""
        async with answering():
            await self._redis.zadd(PENDING, {json.dumps([tenant, erasure_id]): until_s}, xx=True)

    async def forget(self, tenant: str, erasure_id: str) -> None:
        """For one whose record is gone, or that is too many."""
        own = _own(tenant)
        async with answering(), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hdel(f"{own}:records", erasure_id)
            pipeline.zrem(f"{own}:ids", erasure_id)
            pipeline.zrem(PENDING, json.dumps([tenant, erasure_id]))
            await pipeline.execute()

    async def trim(self, tenant: str) -> None:
        """Let the oldest go that are done, where there are too many."""
        own = _own(tenant)
        async with answering():
            surplus = int(await self._redis.zcard(f"{own}:ids")) - KEPT_MAX
            ids = await self._redis.zrange(f"{own}:ids", 0, surplus - 1) if surplus > 0 else []
            texts = await self._redis.hmget(f"{own}:records", ids) if ids else []
        for record in self._reader.read([text for text in texts if text], read_record):
            if record.erasure.state is ErasureState.DONE:
                await self.forget(tenant, record.erasure.erasure_id)


def _own(tenant: str) -> str:
    # A tenant's name may have a colon.
    return PREFIX + hashlib.sha256(tenant.encode()).hexdigest()[:32]
