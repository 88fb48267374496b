"""What the ladder of knowledge keeps of each tenant, and whose turn it is to decide."""

from __future__ import annotations

from collections.abc import Sequence

from memserve.registry.client import answering, close_client, registry_client

RECORDS = "memserve:ladder:records"
"""Hash by tenant: JSON of the ladder's own."""
TURN = "memserve:ladder:turn:"
READ_AT_ONCE = 256


class LadderRecords:
    """Every method raises RegistryUnavailable."""

    def __init__(self, redis_url: str) -> None:
        self._redis = registry_client(redis_url)

    async def aclose(self) -> None:
        await close_client(self._redis)

    async def read(self, tenants: Sequence[str]) -> dict[str, str]:
        """The records by tenant, of those that have one."""
        found: dict[str, str] = {}
        for start in range(0, len(tenants), READ_AT_ONCE):
            some = tenants[start : start + READ_AT_ONCE]
            async with answering():
                texts = await self._redis.hmget(RECORDS, some)
            found |= {tenant: text for tenant, text in zip(some, texts, strict=True) if text}
        return found

    async def write(self, tenant: str, text: str) -> None:
        """Raises RegistryDiskFull too."""
        async with answering():
            await self._redis.hset(RECORDS, tenant, text)

    async def take_turn(self, tenant: str, token: str, seconds: float) -> bool:
        """True for one caller, until it ends its turn or the time is over."""
        async with answering():
            return bool(await self._redis.set(TURN + tenant, token, nx=True, px=int(seconds * 1000)))

    async def end_turn(self, tenant: str, token: str) -> None:
        """Where it is still this caller's. A turn that is not ended runs out."""
        async with answering():
            if await self._redis.get(TURN + tenant) == token:
                await self._redis.delete(TURN + tenant)
