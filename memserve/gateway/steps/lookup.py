"""Step 5 of a request: how much of the prompt's KV is in Redis, for each way that workers lay KV out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from memserve.domain import CacheLayout, EmbeddedRows, KvOrigin, Tenant
from memserve.gateway.soft_prompts import SoftPromptRows
from memserve.gateway.workers.pool import WorkerPool
from memserve.kv.keys import chunk_keys, prompt_keys
from memserve.kv.lookup import PrefixLookup
from memserve.metrics.instruments import GatewayMetrics

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LookedUp:
    """A prompt as workers of one layout hold it."""

    keys: Sequence[bytes] = ()
    """[full blocks]"""
    redis_tokens: int = 0
    """Leading tokens that are in Redis, those of a cartridge too."""
    supplied_tokens: int = 0
    """Positions of a cartridge. A worker that holds it has them."""


class CacheLookup:
    """Asks Redis in one round trip for each layout."""

    def __init__(
        self, pool: WorkerPool, lookup: PrefixLookup, metrics: GatewayMetrics, soft_prompts: SoftPromptRows
    ) -> None:
        self._pool = pool
        self._soft_prompts = soft_prompts
        self._lookup = lookup
        self._metrics = metrics

    async def __call__(
        self, token_ids: Sequence[int], tenant: Tenant, origin: KvOrigin
    ) -> Mapping[CacheLayout, LookedUp]:
        """The prompt in each layout that a worker has now. A worker of a layout that comes later counts as
        holding nothing, and so does every worker while a soft prompt's embeddings cannot be read.
        """
        layouts = self._pool.layouts()
        embedded: EmbeddedRows | None = None
        if origin.is_embedded:
            embedded = await self._soft_prompts.of(tenant.name, origin.prefix)
            if embedded is None:
                return dict.fromkeys(layouts, LookedUp())

        async def look_up(layout: CacheLayout) -> LookedUp:
            supplied = origin.supplied_tokens
            keys = prompt_block_keys(token_ids, layout, tenant, origin, embedded)
            if not keys:
                return LookedUp(supplied_tokens=supplied)
            # Chunks that end within a cartridge are never stored.
            skipped = supplied // layout.chunk_tokens
            asked = chunk_keys(keys, layout.blocks_per_chunk)[skipped:]
            if not asked and supplied:
                return LookedUp(keys, supplied, supplied)
            chunks = await self._lookup.present(layout.namespace, asked)
            outcome = "unavailable" if chunks is None else "hit" if chunks else "miss"
            self._metrics.lookups.labels(outcome).inc()
            found = (skipped + (chunks or 0)) * layout.chunk_tokens
            return LookedUp(keys, max(found, supplied), supplied)

        return dict(zip(layouts, await asyncio.gather(*map(look_up, layouts)), strict=True))


def prompt_block_keys(
    token_ids: Sequence[int],
    layout: CacheLayout,
    tenant: Tenant,
    origin: KvOrigin,
    embedded: EmbeddedRows | None = None,
) -> list[bytes]:
    """[full blocks] keys, as an engine of this layout computes them. embedded: as of `prompt_keys`."""
    return prompt_keys(token_ids, layout.block_tokens, origin, tenant.cache_salt, embedded)


async def timed(work: Awaitable[T]) -> tuple[T, float]:
    """What it gives, and the milliseconds that it took."""
    started_s = time.monotonic()
    return await work, (time.monotonic() - started_s) * 1000
