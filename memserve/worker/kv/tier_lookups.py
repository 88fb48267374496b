"""Which chunks are in Redis: asked on one thread, in batches, while the scheduler goes on."""

from __future__ import annotations

import time
from collections.abc import Iterable

from vllm.v1.kv_offload.base import OffloadKey, ReqContext
from vllm.v1.kv_offload.tiering.async_lookup import AsyncLookupManager

from memserve.kv.rates import MeasuredRates
from memserve.kv.store import RedisChunkStore
from memserve.worker.kv.vllm_internals import is_known_missing


class RedisLookups(AsyncLookupManager):  # type: ignore[misc]
    """One round trip to Redis for each request's chunks of a scheduler step."""

    def __init__(self, store: RedisChunkStore, rates: MeasuredRates, tier_type: str) -> None:
        self._store = store
        self._rates = rates
        super().__init__(tier_type=tier_type)

    def batch_lookup(self, keys: list[OffloadKey], req_context: ReqContext) -> Iterable[bool]:
        """vLLM calls this on the look-up thread."""
        started_s = time.monotonic()
        exist = self._store.exists_many(keys)
        self._rates.looked_up(time.monotonic() - started_s)
        return exist

    def may_be_there(self, key: OffloadKey) -> bool:
        """Whether a chunk is not known to be missing. A chunk that host memory holds is never looked up here.

        On the scheduler's thread.
        """
        return not is_known_missing(self, key)
