"""How often each memory went into a prompt, and how its answers turned out, in the registry Redis.

The script is in `uses.lua`. Uses are counted in this process and written by a loop: a use that is lost with
the process changes an order a little. Outcomes are durable when `record` returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memserve.domain import Memory
from memserve.errors import RegistryDiskFull, RegistryUnavailable
from memserve.memory.texts.records import memory_key, tenant_key
from memserve.policy.recall.strength import DEFAULT_POLICY, StrengthPolicy, Usage, effective_strength
from memserve.registry.client import answering, close_client, registry_client
from memserve.registry.script import Script

log = logging.getLogger(__name__)

SCRIPT = Script.of("memserve.memory.texts", "uses")
PREFIX = "memserve:memories:"
WAITING_MAX = 10_000
"""Memories whose uses wait to be written. Uses of further ones are not counted."""
OUTCOMES_MAX = 10_000
"""Of one tenant's requests, so that an outcome can be corrected. The oldest leave."""
COUNTS_MAX = 65_536
"""Memories whose last read counts stay here, for the order of passages."""
READ_MAX_S = 0.25
WRITE_EVERY_S = 1.0
CLOSE_S = 1.0


@dataclass(frozen=True, slots=True)
class Counted:
    """What has become of a memory."""

    uses: int = 0
    last_used_s: float = 0.0
    """Seconds since the epoch; 0 for never."""
    rewards: float = 0.0
    """The sum over its outcomes, each from 0 to 1."""
    outcomes: int = 0

    def usage(self, memory: Memory, now_s: float) -> Usage:
        ago_s = max(0.0, now_s - self.last_used_s) if self.last_used_s else None
        return Usage(now_s - memory.updated_s, self.uses, ago_s, self.rewards, self.outcomes)


class UseLedger:
    """Of all tenants. `write` is the step of one of the gateway's loops."""

    def __init__(self, redis_url: str, policy: StrengthPolicy = DEFAULT_POLICY) -> None:
        self.policy = policy
        self._redis = registry_client(redis_url)
        self._waiting: dict[str, Counter[str]] = {}
        self._used_s = 0.0
        self._last_read: OrderedDict[str, int] = OrderedDict()

    async def close(self) -> None:
        """Write what waits, for a moment."""
        with contextlib.suppress(TimeoutError, RegistryUnavailable, RegistryDiskFull):
            async with asyncio.timeout(CLOSE_S):
                await self._write_waiting()
        await close_client(self._redis)

    def used(self, tenant: str, memories: Sequence[Memory], now_s: float) -> None:
        """Count one use of each. Returns at once."""
        counts = self._waiting.setdefault(tenant, Counter())
        room = WAITING_MAX - sum(map(len, self._waiting.values()))
        for memory in memories:
            key = _key(tenant, memory)
            if key in counts or room > 0:
                room -= key not in counts
                counts[key] += 1
        self._used_s = max(self._used_s, now_s)

    def has_waiting(self, tenant: str, key: str) -> bool:
        """Whether uses of a memory wait to be written. key: as of `memory_key`."""
        return key in self._waiting.get(tenant, ())

    async def write(self) -> None:
        """Wait a second, and write the uses since."""
        await asyncio.sleep(WRITE_EVERY_S)
        await self._write_waiting()

    async def strengths(
        self, tenant: str, memories: Sequence[Memory], now_s: float
    ) -> Mapping[tuple[str, str], float]:
        """The strength of each memory now, by namespace and id.

        Without the registry, or where it is late, uses and outcomes do not count.
        """
        counted: Mapping[str, Counted] = {}
        with contextlib.suppress(RegistryUnavailable):
            counted = await self.read(tenant, memories, bound_s=READ_MAX_S)
        strengths = {}
        for memory in memories:
            usage = counted.get(_key(tenant, memory), Counted()).usage(memory, now_s)
            strength = effective_strength(memory.strength, memory.kind, usage, self.policy)
            strengths[memory.name] = strength
        return strengths

    async def read(
        self, tenant: str, memories: Sequence[Memory], *, bound_s: float = 1.0
    ) -> dict[str, Counted]:
        """By memory key, of those that have a count. Raises RegistryUnavailable."""
        keys = list(dict.fromkeys(_key(tenant, memory) for memory in memories))
        if not keys:
            return {}
        async with answering(bound_s):
            texts = await self._redis.hmget(_keys(tenant)[0], keys)
        counted = {key: _counted(text) for key, text in zip(keys, texts, strict=True) if text}
        self._keep({key: counts.uses for key, counts in counted.items()})
        return counted

    def last_read(self, tenant: str, memories: Sequence[Memory]) -> dict[tuple[str, str], int]:
        """How often each was used, by namespace and id, as of the last read: a search has just read those of
        its hits. Without a round trip. Memories that were not read, or never used, are left out.
        """
        read = self._last_read
        return {memory.name: read[key] for memory in memories if (key := _key(tenant, memory)) in read}

    def _keep(self, uses: Mapping[str, int]) -> None:
        for key, count in uses.items():
            self._last_read[key] = count
            self._last_read.move_to_end(key)
        while len(self._last_read) > COUNTS_MAX:
            self._last_read.popitem(last=False)

    async def record(
        self, tenant: str, request_id: str, keys: Sequence[str], reward: float, now_s: float
    ) -> None:
        """Count an outcome for each memory. Another one of the same request takes its place.

        keys: as of `memory_key`. reward: 0, failed, to 1. Raises RegistryUnavailable and RegistryDiskFull.
        """
        await self._run(tenant, "record", request_id, f"{reward:.6f}", f"{now_s:.3f}", OUTCOMES_MAX,
                        json.dumps(list(keys)))  # fmt: skip

    async def forget(self, tenant: str, keys: Sequence[str]) -> int:
        """Drop what is counted of memories. Returns of how many. Raises RegistryUnavailable."""
        counts = self._waiting.get(tenant, Counter())
        for key in keys:
            counts.pop(key, None)
            self._last_read.pop(key, None)
        return int(await self._run(tenant, "forget", *keys)) if keys else 0

    async def _write_waiting(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for tenant, counts in waiting.items():
            if not counts:
                continue
            uses = [part for each in counts.items() for part in each]
            try:
                await self._run(tenant, "used", f"{self._used_s:.3f}", *uses)
            except (RegistryUnavailable, RegistryDiskFull) as error:
                log.warning("%d uses of memories are not counted: %s", counts.total(), error)

    async def _run(self, tenant: str, operation: str, *arguments: Any) -> Any:
        async with answering():
            return await SCRIPT.run(self._redis, _keys(tenant), (operation, *arguments))


def _key(tenant: str, memory: Memory) -> str:
    return memory_key(tenant, *memory.name)


def _keys(tenant: str) -> list[str]:
    return [f"{PREFIX}{name}:{tenant_key(tenant)}" for name in ("uses", "outcomes", "recorded")]


def _counted(text: str) -> Counted:
    uses, last_used_s, rewards, outcomes = text.split()
    return Counted(int(uses), float(last_used_s), float(rewards), int(outcomes))
