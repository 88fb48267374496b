"""How many tokens a tenant may have computed in a minute, whichever gateways it asks."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from memserve.domain import TextDelta, Usage
from memserve.errors import QuotaExceeded, RegistryDiskFull, RegistryUnavailable
from memserve.policy.sharing.windows import WINDOW_S, seconds_until_below, used
from memserve.registry.client import answering, close_client, registry_client

log = logging.getLogger("memserve.gateway.access.token_quota")

KEPT_S = 3 * int(WINDOW_S)


@dataclass(slots=True)
class Spent:
    """Of one answer."""

    prompt_tokens: int
    tokens: int = 0

    def see(self, event: TextDelta | Usage) -> None:
        """The answer has gone on. Its prompt counts from its first token on, less what was cached."""
        if isinstance(event, Usage):
            self.tokens -= min(event.cached.total, self.prompt_tokens)
        elif isinstance(event, TextDelta):
            self.tokens += len(event.token_ids) + (0 if self.tokens else self.prompt_tokens)


class TokenQuota:
    """Prompt tokens that are computed and tokens of answers, of each tenant, counted in the registry.

    An answer counts as long as it may become while it is under way, and then as long as it was. While the
    registry does not answer, nothing is refused.
    """

    def __init__(self, redis_url: str, per_minute: int) -> None:
        """per_minute: 0 for no limit."""
        self._per_minute = per_minute
        self._redis = registry_client(redis_url)

    async def close(self) -> None:
        await close_client(self._redis)

    @contextlib.asynccontextmanager
    async def answer(self, tenant: str, prompt_tokens: int, output_tokens: int) -> AsyncIterator[Spent]:
        """Count an answer while inside. The caller shows its events to what this yields.

        output_tokens: at most. Raises QuotaExceeded with the time after which there is room again.
        """
        spent = Spent(prompt_tokens)
        if not self._per_minute:
            yield spent
            return
        most = prompt_tokens + output_tokens
        window, part = divmod(time.time() / WINDOW_S, 1.0)
        key = f"memserve:tokens:{tenant}:{int(window)}"
        counted, before = await self._count(key, most, f"memserve:tokens:{tenant}:{int(window) - 1}")
        earlier = counted - most
        if used(before, earlier, part) >= self._per_minute:
            await self._count(key, -most, key)
            raise QuotaExceeded(
                f"tokens a minute of tenant {tenant}",
                self._per_minute,
                seconds_until_below(before, earlier, part, self._per_minute),
            )
        try:
            yield spent
        finally:
            await self._count(key, spent.tokens - most, key)

    async def _count(self, key: str, tokens: int, other: str) -> tuple[int, int]:
        """Add to one count. Returns it and another one. Without the registry both are 0."""
        try:
            async with answering(), self._redis.pipeline(transaction=True) as pipeline:
                pipeline.incrby(key, tokens)
                pipeline.expire(key, KEPT_S)
                pipeline.get(other)
                counted, _, found = await pipeline.execute()
        except (RegistryUnavailable, RegistryDiskFull) as error:
            log.warning("tokens a minute are not counted: %s", error)
            return tokens, 0
        return int(counted), int(found or 0)
