"""Which aliases have canaries, versions that serve before they have passed the gate. In the registry: every gateway knows them."""

from __future__ import annotations

import json
from dataclasses import dataclass

from memserve.registry import answering, registry_client

CANARIES = "memserve:canaries"


@dataclass(frozen=True, slots=True)
class CanaryAlias:
    """An alias of which a part is on a canary."""

    tenant: str
    name: str
    alias: str


class Canaries:
    """Every method raises RegistryUnavailable when Redis does not answer."""

    def __init__(self, redis_url: str) -> None:
        self._redis = registry_client(redis_url)

    async def close(self) -> None:
        await self._redis.aclose()

    async def add(self, tenant: str, name: str, alias: str) -> None:
        async with answering():
            await self._redis.sadd(CANARIES, json.dumps([tenant, name, alias]))

    async def remove(self, canary: CanaryAlias) -> None:
        async with answering():
            await self._redis.srem(CANARIES, json.dumps([canary.tenant, canary.name, canary.alias]))

    async def all(self) -> list[CanaryAlias]:
        async with answering():
            return sorted((CanaryAlias(*json.loads(entry)) for entry in await self._redis.smembers(CANARIES)), key=str)

    async def take_turn(self, canary: CanaryAlias, seconds: float) -> bool:
        """True for one gateway at a time: the others need not ask the same probes."""
        key = f"{CANARIES}:turn:{json.dumps([canary.tenant, canary.name, canary.alias])}"
        async with answering():
            return bool(await self._redis.set(key, "", nx=True, px=max(int(seconds * 1000), 1)))
