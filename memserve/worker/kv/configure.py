"""The settings of the activation memory, made into what an engine takes.

That is the namespace of its KV, and vLLM's offloading configuration.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from vllm.platforms import current_platform

from memserve.config import Settings
from memserve.errors import StartupError
from memserve.kv.keys import CacheNamespace
from memserve.kv.values.codecs import chunk_codec
from memserve.kv.values.int8 import ChunkLayout
from memserve.model.files import ModelFiles
from memserve.worker.kv.offload import Platform, chunk_blocks, kv_layout, kv_transfer_config
from memserve.worker.kv.tier_settings import RedisTierSettings

# vLLM's attention kernel for the CPU takes no other blocks.
CPU_BLOCK_TOKENS = 32


def activation_memory(settings: Settings, model: ModelFiles, model_digest: str) -> tuple[CacheNamespace, Any]:
    """Returns the namespace, and what `AsyncEngineArgs(kv_transfer_config=…)` takes.

    Raises StartupError for settings that this model or this machine cannot have.
    """
    platform: Platform = "cpu" if current_platform.is_cpu() else "cuda"
    if platform == "cpu" and settings.block_tokens % CPU_BLOCK_TOKENS:
        raise StartupError(
            f"setting block_tokens: must be a multiple of {CPU_BLOCK_TOKENS} on the CPU, not "
            f"{settings.block_tokens}"
        )
    namespace = CacheNamespace(
        model_digest=model_digest,
        kv_dtype=model.dtype,
        kv_layout=kv_layout(
            platform=platform,
            dtype=getattr(torch, model.dtype),
            block_size_tokens=settings.block_tokens,
            head_size=model.head_size,
            tensor_parallel_size=1,
        ),
        block_size_tokens=settings.block_tokens,
        blocks_per_chunk=chunk_blocks(
            kv_bytes_per_token=model.kv_bytes_per_token, block_size_tokens=settings.block_tokens
        ),
        codec=settings.kv_codec,
    )
    tier = RedisTierSettings(
        redis_url=settings.cache_redis,
        namespace=namespace.digest,
        codec=settings.kv_codec,
        layout=_described_layout(model, namespace),
        ttl_s=settings.kv_ttl_s,
        cache_quota_bytes=settings.kv_quota_bytes,
        tenant_quota_bytes=settings.kv_tenant_quota_bytes,
        admit_on_use=settings.kv_admit_on_use,
        always_load=settings.kv_always_load,
        io_timeout_s=settings.kv_io_timeout_ms / 1000,
    )
    transfer = kv_transfer_config(
        platform=platform,
        tier=tier,
        host_bytes=settings.kv_host_bytes,
        blocks_per_chunk=namespace.blocks_per_chunk,
    )
    return namespace, transfer


def _described_layout(model: ModelFiles, namespace: CacheNamespace) -> dict[str, Any] | None:
    """The fields of the `ChunkLayout` of the model's chunks, where the codec needs them.

    Raises StartupError for a codec that cannot encode this model's KV, or cannot do so on this machine.
    """
    layout: dict[str, Any] | None = None
    try:
        if namespace.codec == "lossless" and model.dtype != "bfloat16":
            raise ValueError(f"lossless is for KV in bfloat16, and that of {model.name} is in {model.dtype}")
        if namespace.codec == "int8":
            if model.has_latent_attention:
                raise ValueError(f"int8 is for K and V of heads, and {model.name} has latent attention")
            described = ChunkLayout.of(
                namespace.kv_layout,
                dtype=model.dtype,
                tensors=model.layers,
                blocks=namespace.blocks_per_chunk,
                block_tokens=namespace.block_size_tokens,
                kv_heads=model.kv_heads,
                head_size=model.head_size,
            )
            layout = asdict(described)
        chunk_codec(namespace.codec, layout, chunk_bytes=model.kv_bytes_per_token * namespace.chunk_tokens)
    except ValueError as error:
        raise StartupError(f"setting kv_codec: {error}") from None
    return layout
