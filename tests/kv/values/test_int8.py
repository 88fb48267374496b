"""KV in int8 comes back within half a step, with the channels and tokens where vLLM's kernels put them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memserve.kv.values.int8 import ChunkLayout, from_int8, to_int8

Floats = npt.NDArray[np.float32]

# The rounding of a number of this dtype, relative; and absolute where float16 runs out of exponents.
ROUNDING = {"float32": 2.0**-22, "float16": 2.0**-11, "bfloat16": 2.0**-8}
SMALLEST = {"float32": 2.0**-126, "float16": 2.0**-24, "bfloat16": 2.0**-126}


def layout(**fields: Any) -> ChunkLayout:
    small: dict[str, Any] = {"tensors": 2, "blocks": 2, "block_tokens": 16, "kv_heads": 2, "head_size": 32}
    return ChunkLayout(**{"dtype": "bfloat16", "packing": "vec", **small, **fields})


def numbers(chunk: bytes, dtype: str) -> Floats:
    if dtype == "bfloat16":
        return (np.frombuffer(chunk, np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    return np.frombuffer(chunk, dtype).astype(np.float32)


def as_bytes(values: npt.NDArray[Any], dtype: str) -> bytes:
    if dtype == "bfloat16":
        return (values.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16).tobytes()
    return values.astype(dtype).tobytes()


def packed(keys: npt.NDArray[Any], values: npt.NDArray[Any], packing: str) -> npt.NDArray[Any]:
    """keys, values: [tensors, blocks, kv_heads, tokens, channels]. Returns the chunk's numbers in the order
    of the packing.
    """
    front, (tokens, channels) = keys.shape[:3], keys.shape[3:]
    if packing == "amx":
        keys = keys.reshape(*front, tokens // 16, 16, channels // 2, 2).swapaxes(4, 5)
        values = values.reshape(*front, tokens // 2, 2, channels // 16, 16).transpose(0, 1, 2, 5, 3, 6, 4)
    else:
        keys = keys.swapaxes(3, 4)
    return np.stack([keys.reshape(*front, -1), values.reshape(*front, -1)], axis=3)


def round_trip(chunk: bytes, of: ChunkLayout) -> bytes:
    loaded = bytearray(len(chunk))
    from_int8(to_int8(chunk, of), memoryview(loaded), of)
    return bytes(loaded)


def spread(of: ChunkLayout, rng: np.random.Generator) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """K whose channels and V whose tokens differ in size by up to a thousand; [tensors, blocks, kv_heads,
    tokens, channels] each.
    """
    shape = (of.tensors, of.blocks, of.kv_heads, of.block_tokens, of.head_size)
    keys = rng.standard_normal(shape) * 10.0 ** rng.uniform(
        -2, 1, (of.tensors, 1, of.kv_heads, 1, of.head_size)
    )
    values = rng.standard_normal(shape) * 10.0 ** rng.uniform(-2, 1, (*shape[:4], 1))
    return keys, values


layouts = st.builds(
    layout,
    dtype=st.sampled_from(["bfloat16", "float16", "float32"]),
    packing=st.sampled_from(["vec", "vec16"]),
    tensors=st.integers(1, 3),
    blocks=st.integers(1, 3),
    block_tokens=st.sampled_from([1, 16, 32]),
    kv_heads=st.integers(1, 3),
    head_size=st.sampled_from([1, 16, 48, 64]),
) | st.builds(
    layout,
    dtype=st.sampled_from(["bfloat16", "float16"]),
    packing=st.just("amx"),
    blocks=st.integers(1, 3),
    block_tokens=st.sampled_from([16, 32]),
    head_size=st.sampled_from([16, 64]),
)


@given(of=layouts, seed=st.integers(0, 1000))
def test_every_number_comes_back_within_half_of_its_channels_or_tokens_step(
    of: ChunkLayout, seed: int
) -> None:
    keys, values = spread(of, np.random.default_rng(seed))
    chunk = as_bytes(packed(keys, values, of.packing), of.dtype)
    before, after = numbers(chunk, of.dtype), numbers(round_trip(chunk, of), of.dtype)
    exact_keys = numbers(as_bytes(keys, of.dtype), of.dtype).reshape(keys.shape)
    exact_values = numbers(as_bytes(values, of.dtype), of.dtype).reshape(values.shape)
    key_steps = np.broadcast_to(np.abs(exact_keys).max(axis=(1, 3), keepdims=True) / 127, keys.shape)
    value_steps = np.broadcast_to(np.abs(exact_values).max(axis=4, keepdims=True) / 127, values.shape)
    steps = packed(key_steps, value_steps, of.packing).ravel()
    allowed = (
        steps * (0.5 + 1e-4)
        + np.abs(before) * ROUNDING[of.dtype]
        + SMALLEST[of.dtype]
        + steps * ROUNDING[of.dtype]
    )
    assert (np.abs(after - before) <= allowed).all()


@given(of=layouts, chunk=st.data())
def test_any_finite_numbers_come_back_within_half_a_step_of_the_largest(
    of: ChunkLayout, chunk: st.DataObject
) -> None:
    few = chunk.draw(
        st.lists(st.floats(width=16, allow_nan=False, allow_infinity=False), min_size=1, max_size=8)
    )
    values = as_bytes(np.resize(np.array(few), of.numbers), of.dtype)
    before, after = numbers(values, of.dtype), numbers(round_trip(values, of), of.dtype)
    largest = np.abs(before).max()
    assert (
        np.abs(after - before) <= largest * (0.5 / 127 + ROUNDING[of.dtype] + 1e-6) + SMALLEST[of.dtype]
    ).all()


@pytest.mark.parametrize("packing", ["vec", "vec16", "amx"])
def test_one_large_channel_of_k_costs_the_others_nothing(packing: str) -> None:
    of = layout(packing=packing)
    rng = np.random.default_rng(1)
    shape = (of.tensors, of.blocks, of.kv_heads, of.block_tokens, of.head_size)
    keys, values = rng.uniform(-1, 1, shape), rng.uniform(-1, 1, shape)
    keys[..., 7] *= 1000
    values[:, :, :, 5, :] *= 1000
    chunk = as_bytes(packed(keys, values, packing), "bfloat16")
    error = np.abs(numbers(round_trip(chunk, of), "bfloat16") - numbers(chunk, "bfloat16"))
    small = packed(
        np.arange(of.head_size) != np.full(shape, 7),
        np.arange(of.block_tokens)[:, None] != np.full(shape, 5),
        packing,
    )
    assert error[small.ravel()].max() < 0.01
    assert error[~small.ravel()].max() > 1


@pytest.mark.parametrize("packing", ["vec", "vec16"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_layout_is_that_of_vllms_kernel(packing: str, dtype: str) -> None:
    import torch
    from vllm import _custom_ops as ops

    of = layout(packing=packing, dtype=dtype, tensors=1, block_tokens=32, head_size=64)
    cache = torch.zeros(
        of.blocks, of.kv_heads, 2 * of.block_tokens, of.head_size, dtype=getattr(torch, dtype)
    )
    tokens = of.blocks * of.block_tokens
    keys, values = torch.randn(
        2, tokens, of.kv_heads, of.head_size, generator=torch.Generator().manual_seed(1)
    ).to(cache.dtype)
    ops.cpu_attn_reshape_and_cache(
        keys,
        values,
        *cache.chunk(2, dim=2),
        torch.arange(tokens),
        packing,
        k_scale=1.0,
        v_scale=1.0,
        kv_cache_dtype="auto",
    )
    by_head = [
        tensor.float().numpy().reshape(1, of.blocks, of.block_tokens, of.kv_heads, -1).swapaxes(2, 3)
        for tensor in (keys, values)
    ]
    assert cache.view(torch.uint8).numpy().tobytes() == as_bytes(
        packed(by_head[0], by_head[1], packing), dtype
    )


@given(of=layouts, seed=st.integers(0, 100))
def test_the_length_depends_on_the_layout_alone(of: ChunkLayout, seed: int) -> None:
    keys, values = spread(of, np.random.default_rng(seed))
    chunk = as_bytes(packed(keys, values, of.packing), of.dtype)
    assert len(chunk) == of.raw_bytes
    assert len(to_int8(chunk, of)) == len(to_int8(bytes(of.raw_bytes), of)) == of.int8_bytes


@pytest.mark.parametrize(("dtype", "share"), [("bfloat16", 0.55), ("float16", 0.55), ("float32", 0.28)])
@pytest.mark.parametrize(("blocks", "head_size"), [(1, 64), (1, 128), (2, 64), (5, 64)])
def test_int8_takes_little_more_than_a_byte_a_number(
    dtype: str, share: float, blocks: int, head_size: int
) -> None:
    of = layout(dtype=dtype, blocks=blocks, block_tokens=32, head_size=head_size)
    assert of.int8_bytes <= share * of.raw_bytes


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_zeros_come_back_as_zeros(dtype: str) -> None:
    of = layout(dtype=dtype)
    assert round_trip(bytes(of.raw_bytes), of) == bytes(of.raw_bytes)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, -1, 700])
def test_numbers_that_are_not_finite_are_refused(dtype: str, bad: float, place: int) -> None:
    of = layout(dtype=dtype)
    values = np.ones(of.numbers)
    values[place] = bad
    with pytest.raises(ValueError, match="NaN"):
        to_int8(as_bytes(values, dtype), of)


def test_numbers_whose_steps_might_not_be_finite_are_refused() -> None:
    of = layout(dtype="float32")
    with pytest.raises(ValueError, match=r"2\^127"):
        to_int8(np.full(of.numbers, np.finfo(np.float32).max, np.float32).tobytes(), of)


@given(of=layouts, length=st.integers(0, 3000))
def test_another_length_is_refused(of: ChunkLayout, length: int) -> None:
    if length != of.raw_bytes:
        with pytest.raises(ValueError, match="bytes"):
            to_int8(bytes(length), of)
        with pytest.raises(ValueError, match="bytes"):
            from_int8(bytes(of.int8_bytes), memoryview(bytearray(length)), of)
    if length != of.int8_bytes:
        with pytest.raises(ValueError, match="bytes"):
            from_int8(bytes(length), memoryview(bytearray(of.raw_bytes)), of)


@given(of=layouts, seed=st.integers(0, 10_000))
def test_arbitrary_bytes_are_decoded_without_an_error(of: ChunkLayout, seed: int) -> None:
    from_int8(np.random.default_rng(seed).bytes(of.int8_bytes), memoryview(bytearray(of.raw_bytes)), of)


@pytest.mark.parametrize(
    "fields",
    [
        {"dtype": "float8_e4m3fn"},
        {"packing": "neon"},
        {"packing": "device"},
        {"packing": "amx", "dtype": "float32"},
        {"packing": "amx", "block_tokens": 8},
        {"packing": "amx", "head_size": 24},
        {"kv_heads": 0},
    ],
)
def test_a_layout_that_cannot_be_described_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"int8|AMX|at least one"):
        layout(**fields)


@pytest.mark.parametrize(
    "name",
    ["cuda/device/LBHNC/tp1", "cpu/neon/LBHNC/tp1", "cpu/vec/LBNHC/tp1", "cpu/vec/LBHNC/tp2", "cpu", ""],
)
def test_a_layouts_name_that_is_not_known_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not known"):
        ChunkLayout.of(name, dtype="bfloat16", tensors=2, blocks=2, block_tokens=32, kv_heads=2, head_size=64)


def test_a_layout_is_made_from_its_name_in_the_cache_namespace() -> None:
    of = ChunkLayout.of(
        "cpu/vec/LBHNC/tp1", dtype="bfloat16", tensors=24, blocks=2, block_tokens=32, kv_heads=2, head_size=64
    )
    assert (of.packing, of.raw_bytes) == ("vec", 64 * 12 * 1024)
