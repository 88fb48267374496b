"""Every part of vLLM 0.32 that memserve uses and that vLLM does not document: one function for each.

An upgrade of vLLM begins here. `tests/worker/kv/test_vllm_internals.py` looks for each of these parts in the
installed vLLM, with one test for each function and for each row of INHERITED. It reads the end of each
docstring, which names the part after the file in which the part lives. Paths begin below the package `vllm/`.

The functions are plain attribute accesses, because the scheduler's thread calls some of them for every
chunk. This module imports nothing of vLLM before a function is called.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.scheduler import (
        OffloadingConnectorScheduler,
        RequestOffloadState,
    )
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import OffloadingConnector
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
    from vllm.v1.kv_offload.base import OffloadingManager, OffloadingWorker, OffloadKey, ReqContext
    from vllm.v1.kv_offload.cpu.manager import CPUOffloadingManager
    from vllm.v1.kv_offload.cpu.policies.base import ChunkStatus
    from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
    from vllm.v1.kv_offload.tiering.async_lookup import AsyncLookupManager
    from vllm.v1.kv_offload.tiering.base import SecondaryTierManager
    from vllm.v1.kv_offload.tiering.manager import TieringOffloadingManager
    from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec
    from vllm.v1.metrics.stats import PrefillStats
    from vllm.v1.request import Request
    from vllm.v1.sample.logits_processor import LogitsProcessor

HOST_REGION_FILES = "vllm_offload_*.mmap"
"""The names of the files of vLLM's host regions, in /dev/shm.

v1/kv_offload/cpu/shared_offload_region.py, `SharedOffloadRegion.__init__`.
"""

INHERITED = {
    "v1/kv_offload/tiering/manager.py:TieringOffloadingManager._initiate_promotion": (
        "`EarlyLoadingManager` learns here which tier is to load a chunk for which request."
    ),
    "v1/kv_offload/tiering/manager.py:TieringOffloadingManager._complete_promotion": (
        "`EarlyLoadingManager` keeps a chunk in host memory here until the chunk is copied to its blocks."
    ),
    "v1/kv_offload/tiering/manager.py:TieringOffloadingManager.primary_tier": (
        "`EarlyLoadingManager` holds chunks of host memory, and asks whether they are there."
    ),
    "v1/kv_offload/tiering/manager.py:TieringOffloadingManager.secondary_tiers": (
        "`EarlyLoadingManager` finds the Redis tier by its number."
    ),
    "v1/executor/uniproc_executor.py:UniProcExecutor._init_executor": (
        "`CpuExecutor` prepares the engine's process before the model is loaded."
    ),
    "lora/punica_wrapper/punica_cpu.py:PunicaWrapperCPU._apply_shrink": (
        "`LoraByAdapter` computes x @ A for each adapter on its own."
    ),
    "lora/punica_wrapper/punica_cpu.py:PunicaWrapperCPU._apply_expand": (
        "`LoraByAdapter` adds x @ B for each adapter on its own."
    ),
    "lora/punica_wrapper/punica_cpu.py:PunicaWrapperCPU.add_lora_embedding": (
        "`LoraByAdapter` leaves the embedding as it is."
    ),
    "lora/punica_wrapper/punica_base.py:PunicaWrapperBase.token_lora_indices": (
        "`LoraByAdapter` reads the adapter's slot of every token of the batch."
    ),
    "lora/punica_wrapper/punica_base.py:PunicaWrapperBase.sampler_indices": (
        "`LoraByAdapter` reads the adapter's slot of every row that is sampled."
    ),
}
"""What memserve's subclasses of vLLM's classes override or read, as "file:class.attribute", and what for."""


# The offloading connector


def offloading_scheduler(connector: OffloadingConnector) -> OffloadingConnectorScheduler | None:
    """The scheduler's half of a connector; None in a model runner's process.

    For what vLLM knows of a request while it is scheduled.
    distributed/kv_transfer/kv_connector/v1/offloading_connector.py,
    `OffloadingConnector.connector_scheduler`.
    """
    return connector.connector_scheduler


def offloading_manager(scheduler: OffloadingConnectorScheduler) -> OffloadingManager:
    """The manager that the connector's scheduler asks for chunks: memserve's own on the CPU platform.

    For the Redis tier behind it, and for the loads that fell short.
    distributed/kv_transfer/kv_connector/v1/offloading/scheduler.py,
    `OffloadingConnectorScheduler.manager`.
    """
    return scheduler.manager


def offloading_worker(connector: OffloadingConnector) -> OffloadingWorker | None:
    """The part of a connector that copies KV; None in the scheduler's half, and before the KV cache exists.

    For the chunks that a step waits for, and for blocks whose chunks did not come.
    distributed/kv_transfer/kv_connector/v1/offloading_connector.py,
    `OffloadingConnector.connector_worker`; distributed/kv_transfer/kv_connector/v1/offloading/worker.py,
    `OffloadingConnectorWorker.worker`.
    """
    worker = connector.connector_worker
    return worker.worker if worker is not None else None


def request_state(scheduler: OffloadingConnectorScheduler, request_id: str) -> RequestOffloadState | None:
    """What the connector's scheduler keeps of a request; None once the request has ended.

    For a request whose load fell short.
    distributed/kv_transfer/kv_connector/v1/offloading/scheduler.py,
    `OffloadingConnectorScheduler._req_status`.
    """
    return scheduler._req_status.get(request_id)


def offloaded_request(state: RequestOffloadState) -> Request:
    """The request that the state belongs to.

    distributed/kv_transfer/kv_connector/v1/offloading/scheduler.py,
    `RequestOffloadState.req`.
    """
    return state.req


def locally_computed_tokens(state: RequestOffloadState) -> int:
    """How many tokens of the prompt the engine's own memory had: a load begins behind them.

    distributed/kv_transfer/kv_connector/v1/offloading/scheduler.py,
    `RequestOffloadState.num_locally_computed_tokens`.
    """
    local_tokens: int = state.num_locally_computed_tokens
    return local_tokens


def chunk_tokens_by_group(scheduler: OffloadingConnectorScheduler) -> list[int]:
    """Tokens of a chunk, for each KV cache group.

    distributed/kv_transfer/kv_connector/v1/offloading/scheduler.py,
    `OffloadingConnectorScheduler.config`, `SchedulerOffloadConfig.kv_group_configs`,
    `GroupOffloadConfig.tokens_per_chunk`.
    """
    return [group.tokens_per_chunk for group in scheduler.config.kv_group_configs]


def store_again_from(state: RequestOffloadState, group: int, chunk: int) -> None:
    """Have the chunks of a KV cache group stored from this one on, if vLLM would begin behind it.

    vLLM stores no chunks that it has loaded. Chunks that did not come are computed, and then stored.
    distributed/kv_transfer/kv_connector/v1/offloading/scheduler.py,
    `RequestOffloadState.group_states`, `RequestGroupState.next_stored_chunk_idx`.
    """
    group_state = state.group_states[group]
    group_state.next_stored_chunk_idx = min(group_state.next_stored_chunk_idx, chunk)


def store_from(state: RequestOffloadState, group: int, chunk: int) -> None:
    """Have no chunks of a KV cache group stored that come before this one.

    For the positions of a cartridge, which every worker has that holds it.
    distributed/kv_transfer/kv_connector/v1/offloading/scheduler.py,
    `RequestOffloadState.group_states`, `RequestGroupState.next_stored_chunk_idx`.
    """
    group_state = state.group_states[group]
    group_state.next_stored_chunk_idx = max(group_state.next_stored_chunk_idx, chunk)


def store_nothing(state: RequestOffloadState) -> None:
    """Have no chunk of the request stored from now on.

    For a request whose KV is wrong.
    distributed/kv_transfer/kv_connector/v1/offloading/scheduler.py,
    `RequestOffloadState.max_offload_tokens`.
    """
    state.max_offload_tokens = 0


def connector_metadata(connector: OffloadingConnector) -> KVConnectorMetadata | None:
    """What the scheduler's half has told the worker's half for this step.

    distributed/kv_transfer/kv_connector/v1/base.py, `KVConnectorBase_V1._connector_metadata`.
    """
    return connector._connector_metadata


def attention_layers(connector: OffloadingConnector, names: Iterable[str]) -> list[Any]:
    """The attention layers with these names, in the order of the model.

    For what writes KV into their blocks. A layer's number is in its name.
    distributed/kv_transfer/kv_connector/v1/base.py, `KVConnectorBase_V1._vllm_config`;
    config/compilation.py, `CompilationConfig.static_forward_context`; model_executor/models/utils.py,
    `extract_layer_index`.
    """
    from vllm.model_executor.models.utils import extract_layer_index

    layers = connector._vllm_config.compilation_config.static_forward_context
    return [layers[name] for name in sorted(names, key=extract_layer_index)]


def connector_of_this_process() -> Any:
    """The worker's half of the connector of the engine whose model runs in this process; None without one.

    distributed/kv_transfer/kv_transfer_state.py, `get_kv_transfer_group`, `has_kv_transfer_group`.
    """
    from vllm.distributed.kv_transfer.kv_transfer_state import get_kv_transfer_group, has_kv_transfer_group

    return get_kv_transfer_group() if has_kv_transfer_group() else None


def first_prefill_stats(request: Request) -> PrefillStats | None:
    """How many tokens of the prompt were cached; None once vLLM has reported it, or after a preemption.

    The statistics of a preempted request stay those of its first admission.
    v1/request.py, `Request.prefill_stats`, `Request.num_preemptions`.
    """
    return request.prefill_stats if not request.num_preemptions else None


# The tiers of offloaded KV: v1/kv_offload/


def offload_key_positions(context: ReqContext) -> Mapping[OffloadKey, int]:
    """Every chunk of a request with the token at which it ends, in the order of the prompt.

    For the chain that a request's chunks make. The scheduler's thread goes on filling the mapping.
    v1/kv_offload/base.py, `ReqContext._offload_key_positions`.
    """
    positions: Mapping[OffloadKey, int] = context._offload_key_positions
    return positions


def is_known_missing(lookups: AsyncLookupManager, key: OffloadKey) -> bool:
    """Whether a chunk was looked up and is not there. Belongs to the scheduler's thread.

    `AsyncLookupManager.lookup` would ask for a chunk that nobody has asked for yet.
    v1/kv_offload/tiering/async_lookup.py, `AsyncLookupManager._lookup_state`, `LookupState.result`.
    """
    state = lookups._lookup_state.get(key)
    return state is not None and state.result is False


def host_chunk(primary_tier: CPUOffloadingManager, key: OffloadKey) -> ChunkStatus | None:
    """A chunk of host memory: `chunk_id` is its place, `ref_cnt` how often it is held (-1: not yet there).

    vLLM's `prepare_load` gives the place of chunks that are there only.
    v1/kv_offload/cpu/manager.py, `CPUOffloadingManager._policy`; v1/kv_offload/cpu/policies/base.py,
    `CachePolicy.get`, `ChunkStatus`.
    """
    return primary_tier._policy.get(key)


def drop_host_chunk(primary_tier: CPUOffloadingManager, key: OffloadKey) -> int | None:
    """Free a chunk of host memory, as an eviction does. Returns the chunks freed; None while it is held.

    v1/kv_offload/cpu/manager.py, `CPUOffloadingManager._policy`, `CPUOffloadingManager._free_chunk`,
    `CPUOffloadingManager._num_evictable_cache_chunks`, `CPUOffloadingManager.events`.
    """
    from vllm.v1.kv_offload.base import OffloadingEvent

    chunk = primary_tier._policy.get(key)
    if chunk is None or chunk.ref_cnt != 0:
        return 0 if chunk is None else None
    primary_tier._policy.remove(key)
    primary_tier._free_chunk(chunk)
    primary_tier._num_evictable_cache_chunks -= 1
    if primary_tier.events is not None:
        primary_tier.events.append(OffloadingEvent(keys=[key], medium=primary_tier.medium, removed=True))
    return 1


def secondary_tiers(manager: TieringOffloadingManager) -> list[SecondaryTierManager]:
    """The tiers behind host memory.

    v1/kv_offload/tiering/manager.py, `TieringOffloadingManager.secondary_tiers`.
    """
    tiers: list[SecondaryTierManager] = manager.secondary_tiers
    return tiers


def replace_manager(spec: TieringOffloadingSpec, manager: OffloadingManager) -> None:
    """Have a spec use another manager than the one it has built.

    v1/kv_offload/tiering/spec.py, `TieringOffloadingSpec._manager`.
    """
    spec._manager = manager


def scheduler_region(spec: TieringOffloadingSpec) -> SharedOffloadRegion:
    """The host region that a spec has mapped for the scheduler, once it has built its manager.

    v1/kv_offload/tiering/spec.py, `TieringOffloadingSpec._scheduler_mmap`.
    """
    return spec._scheduler_mmap


def region_file(region: SharedOffloadRegion) -> Path:
    """The file of a host region.

    v1/kv_offload/cpu/shared_offload_region.py, `SharedOffloadRegion.mmap_path`.
    """
    return Path(region.mmap_path)


def has_created(region: SharedOffloadRegion) -> bool:
    """Whether this object has created the file of its region, rather than opened it.

    v1/kv_offload/cpu/shared_offload_region.py, `SharedOffloadRegion._creator`.
    """
    creator: bool = region._creator
    return creator


def leave_file_alone(region: SharedOffloadRegion) -> None:
    """Keep a region's clean-up from deleting the file: its name has gone, or is another's by then.

    v1/kv_offload/cpu/shared_offload_region.py, `SharedOffloadRegion._creator`.
    """
    region._creator = False


# The CPU platform


def cpu_attention_packing(dtype: torch.dtype, block_size_tokens: int, head_size: int) -> str:
    """The instruction set for which vLLM packs the keys of KV on this machine: "amx", "vec", …

    For the name of the layout: engines share KV only where it is equal.
    v1/attention/backends/cpu_attn.py, `_get_attn_isa`.
    """
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    packing: str = _get_attn_isa(dtype, block_size_tokens, head_size)
    return packing


def use_lora_arithmetic(class_path: str) -> None:
    """Have this process do LoRA with another class than vLLM's. vLLM has no setting for it.

    platforms/cpu.py, `CpuPlatform.get_punica_wrapper`, which lora/punica_wrapper/punica_selector.py calls.
    """
    from vllm.platforms import current_platform

    current_platform.get_punica_wrapper = lambda: class_path


# The model runner, as an extension of vLLM's worker sees it


def lora_manager(model_runner: Any) -> LRUCacheWorkerLoRAManager:
    """What holds the adapters of a model runner.

    v1/worker/lora_model_runner_mixin.py, `LoRAModelRunnerMixin.lora_manager`.
    """
    return model_runner.lora_manager


def adapters_in_slots(loras: LRUCacheWorkerLoRAManager) -> list[int]:
    """The adapters that are in a slot of the batch, least recently used first.

    lora/worker_manager.py, `WorkerLoRAManager._adapter_manager`; lora/model_manager.py,
    `LoRAModelManager._active_adapters`; utils/cache.py, `LRUCache.order`.
    """
    return list(loras._adapter_manager._active_adapters.order)


def adapters_in_memory(loras: LRUCacheWorkerLoRAManager) -> list[int]:
    """All adapters that are in host memory, those in a slot too, least recently used first.

    lora/worker_manager.py, `WorkerLoRAManager._adapter_manager`; lora/model_manager.py,
    `LoRAModelManager._registered_adapters`; utils/cache.py, `LRUCache.order`.
    """
    return list(loras._adapter_manager._registered_adapters.order)


def count_adapter_as_used(loras: LRUCacheWorkerLoRAManager, lora_id: int) -> None:
    """Make an adapter in host memory the most recently used one: vLLM lets the least recently used go.

    lora/worker_manager.py, `WorkerLoRAManager._adapter_manager`; lora/model_manager.py,
    `LoRAModelManager._registered_adapters`; utils/cache.py, `LRUCache.touch`.
    """
    loras._adapter_manager._registered_adapters.touch(lora_id)


def logits_processors(model_runner: Any) -> Iterator[LogitsProcessor]:
    """The logits processors of the running batch.

    v1/worker/gpu_input_batch.py, `InputBatch.logitsprocs`; v1/sample/logits_processor/state.py,
    `LogitsProcessors.all`.
    """
    processors: Iterator[LogitsProcessor] = model_runner.input_batch.logitsprocs.all
    return processors
