"""Start vLLM with all that memserve adds to it."""

from __future__ import annotations

from typing import Any

from vllm.config.kv_events import KVEventsConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.v1.engine.async_llm import AsyncLLM

from memserve.config import Settings
from memserve.domain.kinds import KINDS
from memserve.kv.keys import HASH_ALGORITHM
from memserve.memory.modules.blobs.store import BlobStore
from memserve.model.files import ModelFiles
from memserve.worker.engine.engine import Engine
from memserve.worker.engine.forced import PROCESSOR
from memserve.worker.kv.guard import SCHEDULER
from memserve.worker.modules.copies import LocalCopies
from memserve.worker.modules.extension import WORKER_EXTENSION
from memserve.worker.modules.held import Modules
from memserve.worker.modules.kinds.kind import absent_kinds, engine_arguments, engine_kind


def start_engine(settings: Settings, model: ModelFiles, kv_transfer: Any, event_endpoint: str) -> Engine:
    """Start vLLM with prefix caching, multi-LoRA, logit experts, the KV tiers and KV events.

    kv_transfer: from `activation_memory`; None for an engine that shares no KV. event_endpoint: where the KV
    events go out, over ZeroMQ, with full 32-byte keys.

    The process must be in `settings.modules_root`: adapters go by paths relative to it.
    """
    absent = absent_kinds(settings, model)
    if kv_transfer is None:
        # What puts KV into an engine's blocks is the connector.
        absent |= {
            kind: "it shares no KV" for kind, row in KINDS.items() if row.is_prefix and not row.is_embedded
        }
    present = [kind for kind in KINDS if kind not in absent]
    added = engine_arguments(settings, present)
    added["logits_processors"] = [*added.get("logits_processors", ()), PROCESSOR]
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
            scheduler_cls=SCHEDULER,
            kv_events_config=KVEventsConfig(
                enable_kv_cache_events=True, publisher="zmq", endpoint=event_endpoint
            ),
            # White space between the parts of JSON has no end with some models.
            structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
            disable_log_stats=False,
            **_platform_arguments(settings),
            **added,
        )
    )
    kinds = {kind: engine_kind(kind)(llm, settings) for kind in present}
    blobs = BlobStore(settings.module_store_url, settings.modules_root / "modules")
    return Engine(llm, Modules(LocalCopies(blobs), kinds, absent), kinds, settings.modules_root)


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
