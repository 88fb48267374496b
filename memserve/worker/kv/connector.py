"""vLLM's offloading connector, extended: it says which tier a request's cached tokens came from.

vLLM makes two connectors, one for the scheduler and one for the model runner. On the CPU platform both are in
one process.
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
from vllm.v1.kv_offload.tiering.manager import TieringOffloadingManager
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from memserve.worker.kv.cartridges import (
    CartridgeMetadata,
    CartridgePrefixes,
    CartridgeShelf,
    first_positions,
)
from memserve.worker.kv.cpu_copies import CpuOffloadingWorker
from memserve.worker.kv.early_loads import EarlyLoadingManager
from memserve.worker.kv.redis_tier import RedisTier
from memserve.worker.kv.tenant_kv import FREED, Freed, TenantKv, tenant_to_free
from memserve.worker.kv.tier_requests import owner_of
from memserve.worker.kv.vllm_internals import (
    attention_layers,
    chunk_tokens_by_group,
    connector_metadata,
    first_prefill_stats,
    locally_computed_tokens,
    offloaded_request,
    offloading_manager,
    offloading_scheduler,
    offloading_worker,
    request_state,
    secondary_tiers,
    store_again_from,
    store_from,
    store_nothing,
)

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata
    from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorStats
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.kv_offload.base import OffloadingManager
    from vllm.v1.kv_offload.cpu.manager import CPUOffloadingManager
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

CACHED_BY_TIER = "memserve_cached_by_tier"
"""The key under which a finished request's `kv_transfer_params` carry {"host": tokens, "redis": tokens}."""
PARENT_CHECK_S = 0.5
# A step that computes fewer prompt tokens says nothing about the speed of prefill.
MIN_PREFILL_TOKENS = 64


class MemserveConnector(OffloadingConnector):  # type: ignore[misc]
    """`OffloadingConnector` that reports cached tokens by tier when a request ends.

    It supplies the positions of cartridges (`cartridges.py`). It also ends its process with the process's
    parent. The scheduler's half belongs to the scheduler's thread, the worker's half to the model runner's.
    """

    def __init__(
        self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        # By request: the tokens that were loaded for it, by tier.
        self._loaded: dict[str, dict[str, int]] = {}
        # The engine's steps under way: when each began, and how many prompt tokens it computes.
        self._steps: deque[tuple[float, int]] = deque()
        self._last_end_s = 0.0
        engine_id = str(vllm_config.kv_transfer_config.engine_id)
        # By request: the positions of a cartridge that its last admission supplied.
        self._supplied: dict[str, int] = {}
        # By request: the first of its blocks that gets wrong KV.
        self._unsupplied: dict[str, int] = {}
        self._lost_blocks: set[int] = set()
        self._tenants = TenantKv(len(kv_cache_config.kv_cache_groups))
        # By request that asked for it: what was freed.
        self._freed: dict[str, Freed] = {}
        if role == KVConnectorRole.WORKER:
            self.shelf = CartridgeShelf(engine_id, kv_cache_config, vllm_config.model_config.dtype)
        self._block_tokens = vllm_config.cache_config.block_size
        self._prefixes = CartridgePrefixes(CartridgeShelf.by_engine_id.get(engine_id), self._block_tokens)
        if role == KVConnectorRole.SCHEDULER:
            exit_with_parent()
            manager = self._offloading_manager()
            if isinstance(manager, EarlyLoadingManager):
                manager.enabled = computes_what_fails_to_load(kv_cache_config)

    def get_num_new_matched_tokens(
        self, request: Request, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        # vLLM asks every millisecond and looks up every chunk each time. That would keep the GIL from the
        # threads that load the chunks.
        if any(tier.only_waits(request.request_id) for tier in self._redis_tiers()):
            return None, False
        use = self._prefixes.use(request.request_id)
        missing: int | None = 0
        if use is not None and num_computed_tokens < use.tokens:
            missing = self._prefixes.missing(request.request_id, num_computed_tokens, time.monotonic())
            if not missing:
                return missing, False
            # The tier is asked for what follows the cartridge.
            num_computed_tokens = use.tokens
        matched, later = super().get_num_new_matched_tokens(request, num_computed_tokens)
        return (None, False) if matched is None else (missing + matched, later)

    def bind_gpu_block_pool(self, gpu_block_pool: BlockPool) -> None:
        super().bind_gpu_block_pool(gpu_block_pool)
        self._tenants.bind(gpu_block_pool)

    def on_new_request(self, request: Request) -> None:
        super().on_new_request(request)
        if tenant := tenant_to_free(request.kv_transfer_params):
            self._free(tenant, request.request_id)
        else:
            self._tenants.began(owner_of(request.kv_transfer_params).tenant, request)
        use = self._prefixes.begin(request.request_id, request.kv_transfer_params)
        scheduler = offloading_scheduler(self)
        state = request_state(scheduler, request.request_id) if scheduler is not None else None
        if use is not None and scheduler is not None and state is not None:
            # What the cartridge gives need not be in Redis.
            for group, chunk_tokens in enumerate(chunk_tokens_by_group(scheduler)):
                store_from(state, group, use.tokens // chunk_tokens)

    def _free(self, tenant: str, request_id: str) -> None:
        """Free a tenant's KV in both memories, between two steps. The gateway frees what is in Redis."""
        self._freed[request_id], under_way = self._tenants.free(tenant, self._host_memory())
        scheduler = offloading_scheduler(self)
        for each in under_way:
            state = request_state(scheduler, each) if scheduler is not None else None
            if state is not None:
                store_nothing(state)

    def _host_memory(self) -> CPUOffloadingManager | None:
        manager = self._offloading_manager()
        return manager.primary_tier if isinstance(manager, TieringOffloadingManager) else None

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        self._note_unsupplied(scheduler_output)
        meta = super().build_connector_meta(scheduler_output)
        meta = CartridgeMetadata(**vars(meta), supplies=self._prefixes.take_supplies())
        scheduled = scheduler_output.num_scheduled_tokens
        # A request that decodes has one token in a step, speculation apart.
        self._steps.append(
            (time.monotonic(), sum(tokens for tokens in scheduled.values() if tokens >= MIN_PREFILL_TOKENS))
        )
        return meta

    def _note_unsupplied(self, scheduler_output: SchedulerOutput) -> None:
        """Nothing of a request whose placeholders are computed may reach host memory or Redis."""
        positions = first_positions(scheduler_output)
        scheduler = offloading_scheduler(self)
        for request_id in self._prefixes.unsupplied(positions):
            self._unsupplied[request_id] = positions[request_id] // self._block_tokens
            state = request_state(scheduler, request_id) if scheduler is not None else None
            if state is not None:
                store_nothing(state)

    def take_unsupplied(self) -> dict[str, int]:
        """The requests whose placeholders the step computes that was just scheduled. The guard ends them.

        By request, the first of its blocks that gets wrong KV.
        """
        unsupplied, self._unsupplied = self._unsupplied, {}
        return unsupplied

    def get_kv_connector_stats(self) -> KVConnectorStats | None:
        """The only method that vLLM calls exactly once when a step has ended."""
        if self._steps and offloading_scheduler(self) is not None:
            self._step_ended()
        return super().get_kv_connector_stats()

    def _step_ended(self) -> None:
        began_s, tokens = self._steps.popleft()
        now_s = time.monotonic()
        if tokens:
            for tier in self._redis_tiers():
                # Steps may overlap. A step cannot have computed before the step ahead of it ended.
                tier.prefilled(tokens, now_s - max(began_s, self._last_end_s))
        self._last_end_s = now_s

    def _redis_tiers(self) -> list[RedisTier]:
        manager = self._offloading_manager()
        tiers = secondary_tiers(manager) if isinstance(manager, TieringOffloadingManager) else []
        return [tier for tier in tiers if isinstance(tier, RedisTier)]

    def _offloading_manager(self) -> OffloadingManager | None:
        """None in the worker's half."""
        scheduler = offloading_scheduler(self)
        return offloading_manager(scheduler) if scheduler is not None else None

    def update_state_after_alloc(
        self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int
    ) -> None:
        supplied = 0
        if self._prefixes.use(request.request_id) is not None:
            (block_ids,) = blocks.get_block_ids()
            supplied = self._prefixes.allocated(request.request_id, block_ids, num_external_tokens)
            self._supplied[request.request_id] = supplied
        super().update_state_after_alloc(request, blocks, num_external_tokens - supplied)
        if num_external_tokens > supplied:
            self._count_loaded(request, num_external_tokens - supplied)

    def get_external_cache_hit_sources(
        self, request: Request, num_external_tokens: int
    ) -> dict[CacheHitSource, int]:
        supplied = min(self._supplied.get(request.request_id, 0), num_external_tokens)
        sources: dict[CacheHitSource, int] = super().get_external_cache_hit_sources(
            request, num_external_tokens - supplied
        )
        if supplied:
            other = CacheHitSource.EXTERNAL_UNSPECIFIED
            sources[other] = sources.get(other, 0) + supplied
        return sources

    def _count_loaded(self, request: Request, tokens: int) -> None:
        """tokens: that came from the tiers."""
        host = super().get_external_cache_hit_sources(request, tokens).get(CacheHitSource.HOST, 0)
        self._loaded[request.request_id] = {"host": host, "redis": tokens - host}

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        super().register_kv_caches(kv_caches)
        if not self.shelf.refusal:
            self.shelf.attach(attention_layers(self, kv_caches))

    def start_load_kv(self, forward_context: ForwardContext, **arguments: Any) -> None:
        # First vLLM's: what it stores out of blocks must be read before they get other KV.
        super().start_load_kv(forward_context, **arguments)
        meta = connector_metadata(self)
        if isinstance(meta, CartridgeMetadata):
            self._lost_blocks |= self.shelf.supply(meta.supplies)
        worker = self._cpu_worker()
        if worker is not None and forward_context.attn_metadata is None:  # nothing to compute
            worker.wait_for_chunks()

    def get_block_ids_with_load_errors(self) -> set[int]:
        worker = self._cpu_worker()
        lost, self._lost_blocks = self._lost_blocks, set()
        return lost | (worker.take_lost_blocks() if worker is not None else set())

    def _cpu_worker(self) -> CpuOffloadingWorker | None:
        worker = offloading_worker(self)
        return worker if isinstance(worker, CpuOffloadingWorker) else None

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        super().update_connector_output(connector_output)
        manager = self._offloading_manager()
        if isinstance(manager, EarlyLoadingManager):
            for request_id, end_tokens in manager.take_lost().items():
                self._load_fell_short(request_id, end_tokens)

    def _load_fell_short(self, request_id: str, end_tokens: int) -> None:
        """A request was given cached tokens and computes some of them after all.

        end_tokens: where the first chunk ends that it computes.
        """
        scheduler = offloading_scheduler(self)
        state = request_state(scheduler, request_id) if scheduler is not None else None
        if scheduler is None or state is None:
            return
        request = offloaded_request(state)
        if request.is_finished():
            return
        for group, chunk_tokens in enumerate(chunk_tokens_by_group(scheduler)):
            chunk = end_tokens // chunk_tokens - 1
            store_again_from(state, group, chunk)
            came_tokens = max(0, chunk * chunk_tokens - locally_computed_tokens(state))
        stats = first_prefill_stats(request)
        if stats is not None:
            supplied = self._supplied.get(request_id, 0)
            stats.set(stats.num_prompt_tokens, stats.num_local_cached_tokens, supplied + came_tokens)
        self._count_loaded(request, came_tokens)

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        return self._with_tiers(request, *super().request_finished(request, block_ids))

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        return self._with_tiers(request, *super().request_finished_all_groups(request, block_ids))

    def _with_tiers(
        self, request: Request, delay_free: bool, params: dict[str, Any] | None
    ) -> tuple[bool, dict[str, Any] | None]:
        self._prefixes.end(request.request_id)
        self._supplied.pop(request.request_id, None)
        self._tenants.ended(request.request_id, self._host_memory())
        if (freed := self._freed.pop(request.request_id, None)) is not None:
            params = {**(params or {}), FREED: freed.told()}
        loaded = self._loaded.pop(request.request_id, None)
        if loaded is not None:
            params = {**(params or {}), CACHED_BY_TIER: loaded}
        return delay_free, params


def computes_what_fails_to_load(kv_cache_config: KVCacheConfig) -> bool:
    """Whether vLLM takes up a prefix where blocks of it failed to load.

    With several KV cache groups vLLM does not know to which group a block belongs. With a sliding window the
    blocks before the failed ones are needed again, and were never allocated.
    """
    groups = kv_cache_config.kv_cache_groups
    return len(groups) == 1 and isinstance(groups[0].kv_cache_spec, FullAttentionSpec)


def exit_with_parent() -> None:
    """End this process when the process that started it is gone.

    vLLM's engine process outlives a front-end that is killed with -9, and would keep its memory and its
    shared-memory file.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_S)
        os._exit(1)

    threading.Thread(target=watch, name="exit-with-parent", daemon=True).start()
