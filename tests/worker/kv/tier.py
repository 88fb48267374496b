"""A Redis tier over host memory of six chunks, and what vLLM's scheduler hands to it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from memserve.kv.keys import CacheNamespace
from tests.kv.redis_server import wait_until

NAMESPACE = CacheNamespace(
    model_digest="tiny", kv_dtype="float32", kv_layout="test", block_size_tokens=32, blocks_per_chunk=2
)
CHUNK_BYTES = 4096
KEYS = [bytes([i]) * 32 + bytes(4) for i in range(5)]


def tier_over(host: np.ndarray, redis_url: str, **parameters: Any) -> Any:
    from memserve.worker.kv.redis_tier import RedisTier

    spec: Any = SimpleNamespace(kv_events_config=SimpleNamespace(enable_kv_cache_events=True))
    return RedisTier(
        spec, memoryview(host), "RedisTier", redis_url=redis_url, namespace=NAMESPACE.digest, **parameters
    )


def request(keys: list[bytes], name: str = "r", **owner: Any) -> Any:
    """A request whose prompt has these chunks of 64 tokens. owner: as the gateway says it."""
    from vllm.v1.kv_offload.base import OffloadKey, ReqContext

    from memserve.worker.kv.tier_requests import OWNER

    context = ReqContext(name, {OWNER: owner} if owner else None)
    for number, key in enumerate(keys, start=1):
        context.set_offload_key_position(OffloadKey(key), 64 * number)
    return context


def job(job_id: int, keys: list[bytes], chunks: list[int], *, is_load: bool, context: Any = None) -> Any:
    from vllm.v1.kv_offload.base import OffloadKey
    from vllm.v1.kv_offload.tiering.base import TransferJob

    return TransferJob(
        job_id,
        [OffloadKey(key) for key in keys],
        np.array(chunks, dtype=np.int32),
        is_load,
        context or request(keys),
    )


def finished(tier: Any) -> Any:
    tier.drain_jobs()
    (result,) = tier.get_finished_jobs()
    return result


def random_host(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-128, 127, (6, CHUNK_BYTES), dtype=np.int8)


def found_in_redis(tier: Any, keys: list[bytes], context: Any) -> list[bool]:
    """What the scheduler is told once the look-ups are answered."""
    from vllm.v1.kv_offload.base import LookupResult, OffloadKey, ScheduleEndContext

    def ask() -> list[Any]:
        answers = [tier.lookup(OffloadKey(key), context) for key in keys]
        tier.on_schedule_end(ScheduleEndContext([], []))
        return answers

    wait_until(lambda: LookupResult.RETRY not in ask())
    return [answer is LookupResult.HIT for answer in ask()]


def labelled(stats: Any, metric: str) -> dict[str, float]:
    """The growth of a metric by its label, where there is any."""
    values = stats._values.get(f"memserve_kv_tier_{metric}", {})
    return {labels[0]: value for labels, value in values.items() if value}
