"""Start vLLM with all that memserve adds to it."""

from __future__ import annotations

from typing import Any

from vllm.config.kv_events import KVEventsConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.v1.engine.async_llm import AsyncLLM

from memserve.config import Settings
from memserve.domain import ModuleKind
from memserve.kv.keys import HASH_ALGORITHM
from memserve.memory.modules.blobs.store import BlobStore
from memserve.model.architectures import no_lora_reason
from memserve.model.files import ModelFiles
from memserve.worker.engine.engine import Engine
from memserve.worker.modules.copies import LocalCopies
from memserve.worker.modules.extension import WORKER_EXTENSION
from memserve.worker.modules.held import ExpertHolder, LoraHolder, Modules
from memserve.worker.modules.kinds.logit_expert import LIMIT, PROCESSOR
from memserve.worker.modules.room import Holder


def start_engine(settings: Settings, model: ModelFiles, kv_transfer: Any, event_endpoint: str) -> Engine:
    """Start vLLM with prefix caching, multi-LoRA, logit experts, the KV tiers and KV events.

    kv_transfer: from `activation_memory`; None for an engine that shares no KV. event_endpoint: where the KV
    events go out, over ZeroMQ, with full 32-byte keys.

    The process must be in `settings.modules_root`: adapters go by paths relative to it.
    """
    absent = absent_kinds(settings, model)
    held_loras = max(settings.max_cpu_loras, settings.max_loras)
    llm = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=str(model.path),
            dtype=model.dtype,
            served_model_name=[model.name],
            max_model_len=model.max_context_tokens,
            max_num_seqs=settings.max_concurrent,
            enable_prefix_caching=True,
            prefix_caching_hash_algo=HASH_ALGORITHM,
            worker_extension_cls=WORKER_EXTENSION,
            kv_transfer_config=kv_transfer,
            kv_events_config=KVEventsConfig(
                enable_kv_cache_events=True, publisher="zmq", endpoint=event_endpoint
            ),
            disable_log_stats=False,
            **_platform_arguments(settings),
            **_module_arguments(settings, held_loras, absent),
        )
    )
    loras, experts = LoraHolder(llm, held_loras), ExpertHolder(llm, settings.max_experts)
    holders: dict[ModuleKind, Holder] = {ModuleKind.LORA: loras, ModuleKind.LOGIT_EXPERT: experts}
    for kind in absent:
        del holders[kind]
    blobs = BlobStore(settings.module_store_url, settings.modules_root / "modules")
    return Engine(llm, Modules(LocalCopies(blobs), holders, absent), loras, experts, settings.modules_root)


def absent_kinds(settings: Settings, model: ModelFiles) -> dict[ModuleKind, str]:
    """The kinds of modules that the model is served without, and why."""
    absent = {}
    reason = "setting max_loras is 0" if settings.max_loras == 0 else no_lora_reason(model.architecture)
    if not reason and model.has_experts and current_platform.is_cpu():
        reason = "vLLM's LoRA for a mixture of experts does not run on the CPU"
    if reason:
        absent[ModuleKind.LORA] = reason
    if settings.max_experts == 0:
        absent[ModuleKind.LOGIT_EXPERT] = "setting max_experts is 0"
    return absent


def _platform_arguments(settings: Settings) -> dict[str, Any]:
    if not current_platform.is_cpu():
        return {}
    # Imported here: on CUDA nothing of it is used.
    from memserve.worker.engine.cpu import CpuExecutor

    return {
        "kv_cache_memory_bytes": settings.kv_device_bytes,
        "block_size": settings.block_tokens,
        "enforce_eager": True,
        "distributed_executor_backend": CpuExecutor,
    }


def _module_arguments(settings: Settings, held_loras: int, absent: dict[ModuleKind, str]) -> dict[str, Any]:
    """held_loras: how many adapters host memory has room for."""
    arguments: dict[str, Any] = {}
    if settings.max_experts:
        arguments.update(logits_processors=[PROCESSOR], additional_config={LIMIT: settings.max_experts})
    if ModuleKind.LORA not in absent:
        arguments.update(
            enable_lora=True,
            max_loras=settings.max_loras,
            max_cpu_loras=held_loras,
            max_lora_rank=settings.max_lora_rank,
        )
    return arguments
