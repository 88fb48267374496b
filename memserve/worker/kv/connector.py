"""vLLM's offloading connector, and what memserve adds to it: which tier a request's cached tokens came
from.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import OffloadingConnector
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from memserve.worker.kv.cpu_copies import CpuOffloadingWorker
from memserve.worker.kv.early_loads import EarlyLoadingManager
from memserve.worker.kv.redis_tier import RedisTier

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata
    from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorStats
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

# The key under which a finished request's `kv_transfer_params` carry {"host": tokens, "redis": tokens}.
CACHED_BY_TIER = "memserve_cached_by_tier"
PARENT_CHECK_S = 0.5
# Fewer say nothing about the speed of prefill.
LEAST_PREFILL_TOKENS = 64


class MemserveConnector(OffloadingConnector):  # type: ignore[misc]
    """`OffloadingConnector` that reports cached tokens by tier when a request ends, and ends its process with
    its parent.
    """

    def __init__(
        self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._loaded: dict[str, dict[str, int]] = {}
        # Steps of the engine that are under way: when each began, and the prompt tokens that it computes.
        self._steps: deque[tuple[float, int]] = deque()
        self._last_end_s = 0.0
        if role == KVConnectorRole.SCHEDULER:
            exit_with_parent()
            manager = self.connector_scheduler.manager
            if isinstance(manager, EarlyLoadingManager):
                manager.enabled = computes_what_fails_to_load(kv_cache_config)

    def get_num_new_matched_tokens(
        self, request: Request, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        # vLLM asks every millisecond, and looks up every chunk each time. That keeps the GIL from the threads
        # that load them.
        if any(tier.only_waits(request.request_id) for tier in self._redis_tiers()):
            return None, False
        matched: tuple[int | None, bool] = super().get_num_new_matched_tokens(request, num_computed_tokens)
        return matched

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        meta = super().build_connector_meta(scheduler_output)
        scheduled = scheduler_output.num_scheduled_tokens
        # A request that decodes has one token in a step (speculation apart).
        self._steps.append(
            (time.monotonic(), sum(tokens for tokens in scheduled.values() if tokens >= LEAST_PREFILL_TOKENS))
        )
        return meta

    def get_kv_connector_stats(self) -> KVConnectorStats | None:
        """The one method that vLLM calls exactly once when a step has ended."""
        if self.connector_scheduler is not None and self._steps:
            self._step_ended()
        return super().get_kv_connector_stats()

    def _step_ended(self) -> None:
        began_s, tokens = self._steps.popleft()
        now_s = time.monotonic()
        if tokens:
            for tier in self._redis_tiers():
                # Steps may overlap: a step cannot have computed before the one before it ended.
                tier.prefilled(tokens, now_s - max(began_s, self._last_end_s))
        self._last_end_s = now_s

    def _redis_tiers(self) -> list[RedisTier]:
        manager = self.connector_scheduler.manager if self.connector_scheduler is not None else None
        return [tier for tier in getattr(manager, "secondary_tiers", ()) if isinstance(tier, RedisTier)]

    def update_state_after_alloc(
        self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int
    ) -> None:
        super().update_state_after_alloc(request, blocks, num_external_tokens)
        if num_external_tokens > 0:
            self._count_loaded(request, num_external_tokens)

    def _count_loaded(self, request: Request, tokens: int) -> None:
        host = self.get_external_cache_hit_sources(request, tokens).get(CacheHitSource.HOST, 0)
        self._loaded[request.request_id] = {"host": host, "redis": tokens - host}

    def start_load_kv(self, forward_context: ForwardContext, **arguments: Any) -> None:
        super().start_load_kv(forward_context, **arguments)
        worker = self._cpu_worker()
        if worker is not None and forward_context.attn_metadata is None:  # nothing to compute
            worker.wait_for_chunks()

    def get_block_ids_with_load_errors(self) -> set[int]:
        worker = self._cpu_worker()
        return worker.take_lost_blocks() if worker is not None else set()

    def _cpu_worker(self) -> CpuOffloadingWorker | None:
        worker = self.connector_worker.worker if self.connector_worker is not None else None
        return worker if isinstance(worker, CpuOffloadingWorker) else None

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        super().update_connector_output(connector_output)
        manager = self.connector_scheduler.manager if self.connector_scheduler is not None else None
        if isinstance(manager, EarlyLoadingManager):
            for request_id, end_tokens in manager.take_lost().items():
                self._load_fell_short(request_id, end_tokens)

    def _load_fell_short(self, request_id: str, end_tokens: int) -> None:
        """A request that was given cached tokens computes some of them after all, from the chunk on that ends
        at `end_tokens`.
        """
        scheduler = self.connector_scheduler
        state = scheduler._req_status.get(request_id) if scheduler is not None else None
        if state is None or state.req.is_finished():
            return
        for group_config, group in zip(scheduler.config.kv_group_configs, state.group_states, strict=True):
            chunk = end_tokens // group_config.tokens_per_chunk - 1
            group.next_stored_chunk_idx = min(
                group.next_stored_chunk_idx, chunk
            )  # what is computed is stored
            came_tokens = max(0, chunk * group_config.tokens_per_chunk - state.num_locally_computed_tokens)
        stats = state.req.prefill_stats
        if stats is not None and not state.req.num_preemptions:  # they are of the first admission
            stats.set(stats.num_prompt_tokens, stats.num_local_cached_tokens, came_tokens)
        self._count_loaded(state.req, came_tokens)

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        return self._with_tiers(request, *super().request_finished(request, block_ids))

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        return self._with_tiers(request, *super().request_finished_all_groups(request, block_ids))

    def _with_tiers(
        self, request: Request, delay_free: bool, params: dict[str, Any] | None
    ) -> tuple[bool, dict[str, Any] | None]:
        loaded = self._loaded.pop(request.request_id, None)
        if loaded is not None:
            params = {**(params or {}), CACHED_BY_TIER: loaded}
        return delay_free, params


def computes_what_fails_to_load(kv_cache_config: KVCacheConfig) -> bool:
    """Whether vLLM takes up a prefix where blocks of it failed to load. With several groups it does not know
    whose they are; with a sliding window the blocks before them, which it needs again, were never allocated.
    """
    groups = kv_cache_config.kv_cache_groups
    return len(groups) == 1 and isinstance(groups[0].kv_cache_spec, FullAttentionSpec)


def exit_with_parent() -> None:
    """End this process when the one that started it is gone.

    vLLM's engine process outlives a front-end that is killed with -9; it would keep its memory and its
    shared-memory file.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_S)
        os._exit(1)

    threading.Thread(target=watch, name="exit-with-parent", daemon=True).start()
