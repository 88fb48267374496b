"""KV in int8. Pure, numpy only.

1. Keys have a few channels that are large at every token. A key has one scale for each channel, over all
   tokens of the chunk.
2. Values have no such channels. A value has one scale for each token.

A chunk is [tensors, blocks] pages. Its int8 form, whose length depends on the layout alone:

    float32 [tensors, kv_heads, head_size]             scales of K
    float32 [tensors, blocks, kv_heads, block_tokens]  scales of V
    int8    the chunk's numbers, in the chunk's own order

The byte order is the machine's, as in the chunk itself.
Source: the axes are those of KIVI (arXiv 2402.02750), here with 8 bits and without a zero point.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from memserve.kv.values.envelope import Buffer

_Array = npt.NDArray[Any]


# The bits of a number as an unsigned integer. Without the sign bit, the integers are ordered as the
# magnitudes are. Infinity and NaN come last.
_BITS: Final[dict[str, type[np.unsignedinteger[Any]]]] = {
    "bfloat16": np.uint16,
    "float16": np.uint16,
    "float32": np.uint32,
}
# vLLM's CPU kernels by instruction set. "vec" and "vec16" keep K as [channel, token]. AMX pairs 16-bit
# numbers, in groups of 16.
_TRANSPOSED: Final = frozenset({"vec", "vec16"})
_AMX: Final = "amx"
_AMX_GROUP, _AMX_PAIR = 16, 2
_SCALE_BYTES: Final = 4
# This many float32 numbers fit into a core's own cache beside the rest.
_CACHED_NUMBERS: Final = 1 << 16
_LARGEST_INT8: Final = 127
_SMALLEST_SCALE: Final = np.float32(np.finfo(np.float32).tiny)
# Up to here 127 rounded steps are finite in every format.
_LARGEST_NUMBER: Final = {"bfloat16": 2.0**127, "float16": 65504.0, "float32": 2.0**127}


@dataclass(frozen=True, slots=True)
class _Side:
    """How one head's K or V lies in a page."""

    shape: tuple[int, ...]
    shared_axes: tuple[int, ...]
    """The axes of `shape` that share one scale."""
    over_blocks: bool
    """Whether the blocks of a chunk share the scales too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkLayout:
    """How the bytes of a chunk are arranged: [tensors, blocks, kv_heads, K then V], and inside in `packing`'s
    order.

    Raises ValueError for a layout that it cannot describe. Other packings ("neon", "device", …) are such
    layouts.
    """

    dtype: str
    """As torch names it: "bfloat16", "float16" or "float32"."""
    tensors: int
    """KV tensors, one for each layer."""
    blocks: int
    """Blocks in a chunk."""
    block_tokens: int
    kv_heads: int
    head_size: int
    packing: str
    """vLLM's instruction set for attention on the CPU: "vec", "vec16" or "amx"."""

    def __post_init__(self) -> None:
        if self.dtype not in _BITS:
            raise ValueError(f"KV of dtype {self.dtype} cannot be int8; known are {', '.join(_BITS)}")
        if min(self.tensors, self.blocks, self.block_tokens, self.kv_heads, self.head_size) < 1:
            raise ValueError(f"a chunk has at least one of everything: {self}")
        if self.packing == _AMX:
            if self.dtype == "float32" or self.block_tokens % _AMX_GROUP or self.head_size % _AMX_GROUP:
                raise ValueError(
                    f"AMX packs 16-bit numbers of multiples of {_AMX_GROUP} tokens and channels, not {self}"
                )
        elif self.packing not in _TRANSPOSED:
            raise ValueError(
                f"where K and V lie in a page of packing {self.packing!r} is not known, so it cannot be int8"
            )

    @classmethod
    def of(
        cls,
        kv_layout: str,
        *,
        dtype: str,
        tensors: int,
        blocks: int,
        block_tokens: int,
        kv_heads: int,
        head_size: int,
    ) -> Self:
        """kv_layout: as `memserve.worker.kv.offload.kv_layout` names it, such as "cpu/vec/LBHNC/tp1". Raises
        ValueError as the class.
        """
        platform, packing, order, ranks = (*kv_layout.split("/"), "", "", "", "")[:4]
        if (platform, order, ranks) != ("cpu", "LBHNC", "tp1"):
            raise ValueError(
                f"where K and V lie in a page of layout {kv_layout!r} is not known, so it cannot be int8"
            )
        return cls(
            dtype=dtype,
            tensors=tensors,
            blocks=blocks,
            block_tokens=block_tokens,
            kv_heads=kv_heads,
            head_size=head_size,
            packing=packing,
        )

    @property
    def numbers(self) -> int:
        return prod(self._shape)

    @property
    def raw_bytes(self) -> int:
        """Length of the chunk as the engine has it."""
        return self.numbers * np.dtype(_BITS[self.dtype]).itemsize

    @property
    def int8_bytes(self) -> int:
        """Length of the chunk in int8."""
        return _SCALE_BYTES * (prod(self._key_scales) + prod(self._value_scales)) + self.numbers

    @property
    def _shape(self) -> tuple[int, ...]:
        return (self.tensors, self.blocks, self.kv_heads, 2, self.block_tokens * self.head_size)

    @property
    def _key_scales(self) -> tuple[int, ...]:
        return (self.tensors, self.kv_heads, self.head_size)

    @property
    def _value_scales(self) -> tuple[int, ...]:
        return (self.tensors, self.blocks, self.kv_heads, self.block_tokens)

    @property
    def _sides(self) -> tuple[_Side, _Side]:
        """K, V. Source: vllm 0.32, csrc/cpu/cpu_attn_{vec,amx}.hpp, `reshape_and_cache`."""
        tokens, channels = self.block_tokens, self.head_size
        if self.packing == _AMX:
            # [token group, channel pair, token, channel]
            key = (tokens // _AMX_GROUP, channels // _AMX_PAIR, _AMX_GROUP, _AMX_PAIR)
            # [channel group, token pair, channel, token]
            value = (channels // _AMX_GROUP, tokens // _AMX_PAIR, _AMX_GROUP, _AMX_PAIR)
            return _Side(key, (0, 2), over_blocks=True), _Side(value, (0, 2), over_blocks=False)
        return _Side((channels, tokens), (1,), over_blocks=True), _Side(
            (tokens, channels), (1,), over_blocks=False
        )


def to_int8(chunk: Buffer, layout: ChunkLayout) -> bytearray:
    """Encode a chunk.

    A scale is the largest magnitude that shares the scale, divided by 127. A number comes back within half of
    its scale, and is then rounded to the dtype.

    chunk: `layout.raw_bytes` contiguous bytes.
    Returns `layout.int8_bytes` bytes.
    Raises ValueError for another length, and for a chunk with a NaN, an infinity or a magnitude above 2^127.
    Such a chunk has no scale, and its KV is better not kept.
    """
    without_sign = _BITS[layout.dtype](np.iinfo(_BITS[layout.dtype]).max >> 1)
    pages = _numbers(chunk, layout)
    encoded = bytearray(layout.int8_bytes)
    *scales, steps = _parts(encoded, layout)
    for part in _cached_parts(layout):
        own = pages[part]
        floats = _as_float(own, layout.dtype)
        for half, side in enumerate(layout._sides):
            largest = _as_float(_largest(own[..., half, :] & without_sign, side), layout.dtype)
            if not (largest <= _LARGEST_NUMBER[layout.dtype]).all():
                raise ValueError("KV with a NaN, an infinity or a magnitude above 2^127 has no int8 form")
            scale = np.maximum(largest / np.float32(_LARGEST_INT8), _SMALLEST_SCALE)
            scales[half][part] = scale.reshape(scales[half][part].shape)
            scaled = _arranged(floats[..., half, :], side)
            scaled *= _spread(np.float32(1) / scale, side)
        np.rint(floats, out=floats)
        np.copyto(steps[part], floats, casting="unsafe")
    return encoded


def from_int8(encoded: Buffer, chunk: memoryview, layout: ChunkLayout) -> None:
    """Fill `chunk` with the numbers that `to_int8` encoded.

    encoded: from `to_int8`, contiguous.
    chunk: writable and contiguous, `layout.raw_bytes` long.
    Raises ValueError for another length, and for nothing else. Other bytes of this length give meaningless
    numbers.
    """
    if memoryview(encoded).nbytes != layout.int8_bytes:
        raise ValueError(
            f"{memoryview(encoded).nbytes} bytes are no chunk in int8 of {layout.int8_bytes} bytes"
        )
    pages = _numbers(chunk, layout)
    *scales, steps = _parts(encoded, layout)
    with np.errstate(all="ignore"):
        for part in _cached_parts(layout):
            floats = steps[part].astype(np.float32)
            for half, side in enumerate(layout._sides):
                stepped = _arranged(floats[..., half, :], side)
                stepped *= _spread(_unshared(scales[half][part], side), side)
            if layout.dtype == "bfloat16":
                rounded = floats.view(np.uint32)
                rounded += np.uint32(0x8000)  # to the nearest; a tie away from zero
                pages[part] = floats.view(np.uint16)[..., 1::2]
            else:
                pages[part].view(layout.dtype)[...] = floats


def _cached_parts(layout: ChunkLayout) -> list[slice]:
    """The tensors of a chunk, in parts whose arithmetic stays in the processor's cache."""
    step = max(1, _CACHED_NUMBERS * layout.tensors // layout.numbers)
    return [slice(first, first + step) for first in range(0, layout.tensors, step)]


def _numbers(chunk: Buffer, layout: ChunkLayout) -> _Array:
    """The bits of the chunk's numbers in the shape `layout._shape`, in the chunk's own memory."""
    if memoryview(chunk).nbytes != layout.raw_bytes:
        raise ValueError(f"{memoryview(chunk).nbytes} bytes are no chunk of {layout.raw_bytes} bytes")
    return np.frombuffer(chunk, _BITS[layout.dtype]).reshape(layout._shape)


def _parts(encoded: Buffer, layout: ChunkLayout) -> tuple[_Array, _Array, _Array]:
    """Scales of K, scales of V, and the steps as `_numbers` shapes them."""
    keys, values = prod(layout._key_scales), prod(layout._value_scales)
    scales = np.frombuffer(encoded, np.float32, keys + values)
    steps = np.frombuffer(encoded, np.int8, offset=_SCALE_BYTES * (keys + values))
    return (
        scales[:keys].reshape(layout._key_scales),
        scales[keys:].reshape(layout._value_scales),
        steps.reshape(layout._shape),
    )


def _arranged(half: _Array, side: _Side) -> _Array:
    """One half in the shape [tensors, blocks, kv_heads, *side.shape], in the same memory.

    half: [tensors, blocks, kv_heads, block_tokens * head_size].
    """
    return half.reshape(*half.shape[:3], *side.shape)


def _largest(half: _Array, side: _Side) -> _Array:
    """The largest of the numbers that share a scale.

    Returns [tensors, blocks or 1, kv_heads, *side.shape with 1 for the shared axes].
    """
    largest = _arranged(half, side)
    # One axis after the other, the outermost first. The array shrinks while its rows are still long.
    if side.over_blocks:
        largest = largest.max(axis=1, keepdims=True)
    for axis in side.shared_axes:
        largest = largest.max(axis=axis + 3, keepdims=True)
    return largest


def _unshared(scales: _Array, side: _Side) -> _Array:
    """Stored scales in the shape of `_largest`."""
    shape = tuple(1 if axis in side.shared_axes else size for axis, size in enumerate(side.shape))
    front = (scales.shape[0], 1, scales.shape[1]) if side.over_blocks else scales.shape[:3]
    return scales.reshape(*front, *shape)


def _spread(scale: _Array, side: _Side) -> _Array:
    """Scales repeated over the inner shared axes, so that arithmetic with the scales runs over long rows."""
    if len(side.shape) == 2:
        return scale
    return np.ascontiguousarray(np.broadcast_to(scale, (*scale.shape[:4], *side.shape[1:])))


def _as_float(bits: _Array, dtype: str) -> npt.NDArray[np.float32]:
    """A copy, of the same shape."""
    if dtype == "bfloat16":
        widened = bits.astype(np.uint32)
        widened <<= np.uint32(16)
        return widened.view(np.float32)
    return bits.view(dtype).astype(np.float32)
