"""What the connector adds to vLLM's: which loads may be early, and requests whose load fell short."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


def test_vllm_computes_what_fails_to_load_with_one_group_of_full_attention_only() -> None:
    import torch
    from vllm.v1.kv_cache_interface import (
        FullAttentionSpec,
        KVCacheConfig,
        KVCacheGroupSpec,
        SlidingWindowSpec,
    )

    from memserve.worker.kv.connector import computes_what_fails_to_load

    shape: dict[str, Any] = {"block_size": 32, "num_kv_heads": 2, "head_size": 64, "dtype": torch.bfloat16}
    full = KVCacheGroupSpec(["a"], FullAttentionSpec(**shape))
    window = KVCacheGroupSpec(["b"], SlidingWindowSpec(**shape, sliding_window=128))

    def computes(*groups: KVCacheGroupSpec) -> bool:
        return computes_what_fails_to_load(
            KVCacheConfig(num_blocks=8, kv_cache_tensors=[], kv_cache_groups=list(groups))
        )

    assert computes(full)
    assert not computes(window)
    assert not computes(full, full)


class Asked:
    """The scheduler's side of a connector with one request: 4,000 tokens, of which 96 were in the engine's
    memory.
    """

    def __init__(self, *, finished: bool = False, preemptions: int = 0) -> None:
        from vllm.v1.metrics.stats import PrefillStats

        self.counted: list[int] = []
        self.stats = PrefillStats()
        self.stats.set(4000, 96, 3904)
        request = SimpleNamespace(
            is_finished=lambda: finished, num_preemptions=preemptions, prefill_stats=self.stats
        )
        self.group = SimpleNamespace(next_stored_chunk_idx=62)
        state = SimpleNamespace(req=request, group_states=(self.group,), num_locally_computed_tokens=96)
        config = SimpleNamespace(kv_group_configs=(SimpleNamespace(tokens_per_chunk=64),))
        self.connector_scheduler = SimpleNamespace(_req_status={"r": state}, config=config)
        self._supplied: dict[str, int] = {}

    def _count_loaded(self, request: Any, tokens: int) -> None:
        self.counted.append(tokens)

    def falls_short(self) -> None:
        from memserve.worker.kv.connector import MemserveConnector

        fell_short: Any = MemserveConnector._load_fell_short
        fell_short(self, "r", 640)


def test_a_request_whose_load_fell_short_counts_what_came_and_stores_the_rest() -> None:
    asked = Asked()
    asked.falls_short()
    assert asked.group.next_stored_chunk_idx == 9
    assert asked.counted == [9 * 64 - 96]
    assert (asked.stats.num_cached_tokens, asked.stats.num_computed_tokens) == (576, 4000 - 576)


def test_what_a_cartridge_supplied_counts_beside_what_came_from_the_tier() -> None:
    """The tier loaded from position 96 on; the engine's own memory had 32 of those before it."""
    asked = Asked()
    asked.stats.set(4000, 32, 3968)
    asked._supplied["r"] = 64
    asked.falls_short()
    assert asked.counted == [9 * 64 - 96]
    assert asked.stats.num_cached_tokens == 9 * 64


def test_the_statistics_of_a_preempted_request_stay_those_of_its_first_admission() -> None:
    asked = Asked(preemptions=1)
    asked.falls_short()
    assert asked.stats.num_cached_tokens == 4000
    assert asked.counted == [9 * 64 - 96]


def test_a_request_that_is_over_is_not_counted_again() -> None:
    asked = Asked(finished=True)
    asked.falls_short()
    assert asked.counted == []
    assert asked.group.next_stored_chunk_idx == 62
