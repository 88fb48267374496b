"""Whether the layout that int8 goes by is the one that vLLM's kernels write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from memserve.demo import MODEL_DIR
from memserve.kv.values.int8 import ChunkLayout, from_int8, to_int8


def arrangement_error(layout: ChunkLayout, chunks: Sequence[bytes], token_ids: Sequence[int]) -> float:
    """How far the chunks, read as `layout` says, are from the K and V that transformers computes: the largest
    difference of all.

    Only for float32 and a packing that transposes K.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    with torch.inference_mode():
        cache = model(input_ids=torch.tensor([list(token_ids)])).past_key_values
    shape = (layout.tensors, layout.blocks, layout.kv_heads, 2, -1)
    worst = 0.0
    for place, chunk in enumerate(chunks):
        pages = np.frombuffer(chunk, np.float32).reshape(shape)
        tokens = slice(
            place * layout.blocks * layout.block_tokens, (place + 1) * layout.blocks * layout.block_tokens
        )
        for tensor in range(layout.tensors):
            front = (layout.blocks, layout.kv_heads)
            keys = (
                pages[tensor, :, :, 0].reshape(*front, layout.head_size, layout.block_tokens).swapaxes(2, 3)
            )
            values = pages[tensor, :, :, 1].reshape(*front, layout.block_tokens, layout.head_size)
            for mine, other in ((keys, cache.layers[tensor].keys), (values, cache.layers[tensor].values)):
                by_token = mine.transpose(1, 0, 2, 3).reshape(layout.kv_heads, -1, layout.head_size)
                worst = max(worst, float(np.abs(by_token - other[0, :, tokens].numpy()).max()))
    return worst


def kernel_errors() -> list[list[object]]:
    """vLLM's own kernels write K with one channel, and V with one token, that is large; int8 must not smear
    it over the others.

    Returns a row for each packing and dtype: the largest error of the small numbers, in steps of a scale that
    they share with no large one. More than half a step, and the rounding, would mean that the layout is not
    the kernel's.
    """
    rows: list[list[object]] = []
    for packing, dtype in (
        ("vec", "float32"),
        ("vec", "bfloat16"),
        ("vec16", "bfloat16"),
        ("amx", "bfloat16"),
    ):
        layout = ChunkLayout(
            dtype=dtype, tensors=1, blocks=3, block_tokens=64, kv_heads=2, head_size=64, packing=packing
        )
        try:
            error: object = round(_kernel_error(layout), 3)
        except RuntimeError:  # vLLM is built with the packings of one kind of processor
            error = "not in this build"
        rows.append([packing, dtype, error])
    return rows


def _kernel_error(layout: ChunkLayout) -> float:
    """The largest error beside an outlier, in steps. Raises RuntimeError when the kernel is not built."""
    import torch

    tokens = layout.blocks * layout.block_tokens
    keys, values = (
        torch.rand(2, tokens, layout.kv_heads, layout.head_size, generator=torch.Generator().manual_seed(1))
        * 2
        - 1
    )
    keys[..., 7] *= 1000
    values[5] *= 1000
    large_keys, large_values = torch.zeros_like(keys), torch.zeros_like(values)
    large_keys[..., 7] = 1
    large_values[5] = 1
    cache, large = _written(keys, values, layout), _written(large_keys, large_values, layout)
    loaded = torch.empty_like(cache)
    layout_bytes = cache.view(torch.uint8).numpy().tobytes()
    from_int8(to_int8(layout_bytes, layout), loaded.view(torch.uint8).numpy().reshape(-1).data, layout)
    return float((loaded.float() - cache.float()).abs()[large == 0].max()) * 127


def _written(keys: Any, values: Any, layout: ChunkLayout) -> Any:
    """The cache that vLLM's kernel writes. keys, values: [tokens, KV heads, head size]."""
    import torch
    from vllm import _custom_ops as ops

    dtype = getattr(torch, layout.dtype)
    cache = torch.zeros(
        layout.blocks, layout.kv_heads, 2 * layout.block_tokens, layout.head_size, dtype=dtype
    )
    ops.cpu_attn_reshape_and_cache(
        keys.to(dtype),
        values.to(dtype),
        *cache.chunk(2, dim=2),
        torch.arange(layout.blocks * layout.block_tokens),
        layout.packing,
        k_scale=1.0,
        v_scale=1.0,
        kv_cache_dtype="auto",
    )
    return cache
