"""What was stored is what is loaded, or it is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memserve.kv.values.envelope import HEADER_BYTES, Codec, Refusal, Verification, encode_header
from memserve.kv.values.lossless import compress, compressed_limit_bytes, decompress

NAMESPACE = bytes(range(32))
KEY = bytes(range(100, 136))
payloads = st.binary(max_size=300)
keys = st.binary(min_size=1, max_size=64)
namespaces = st.binary(min_size=32, max_size=32)


def stored(
    payload: bytes, *, namespace: bytes = NAMESPACE, key: bytes = KEY, codec: Codec = Codec.RAW
) -> bytes:
    return encode_header(payload, namespace=namespace, key=key, codec=codec) + payload


def read(
    value: bytes, *, namespace: bytes = NAMESPACE, key: bytes = KEY, codec: Codec = Codec.RAW
) -> Refusal | None:
    view = memoryview(value)
    return Verification(view[HEADER_BYTES:], namespace=namespace, key=key, codec=codec).refusal(
        view[:HEADER_BYTES]
    )


def decompressed(payload: bytes, length: int) -> bytes:
    chunk = bytearray(length)
    decompress(payload, memoryview(chunk))
    return bytes(chunk)


def bfloat16(numbers: npt.NDArray[Any]) -> bytes:
    return (numbers.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()


@given(payload=payloads, namespace=namespaces, key=keys, codec=st.sampled_from(Codec))
def test_what_was_stored_is_accepted(payload: bytes, namespace: bytes, key: bytes, codec: Codec) -> None:
    assert (
        read(
            stored(payload, namespace=namespace, key=key, codec=codec),
            namespace=namespace,
            key=key,
            codec=codec,
        )
        is None
    )


@given(
    payload=payloads, ends=st.lists(st.integers(-5, 300), max_size=5), flipped=st.none() | st.integers(0, 300)
)
def test_a_value_that_comes_in_pieces_is_as_good_as_one_that_is_there(
    payload: bytes, ends: list[int], flipped: int | None
) -> None:
    value = bytearray(stored(payload))
    damaged = flipped is not None and flipped < len(payload)
    if damaged:
        value[HEADER_BYTES + flipped] ^= 1
    view = memoryview(value)
    check = Verification(view[HEADER_BYTES:], namespace=NAMESPACE, key=KEY)
    for end in ends:
        check.came(min(end, len(payload)))
    assert check.refusal(view[:HEADER_BYTES]) is (Refusal.BAD_CHECKSUM if damaged else None)


@given(payload=payloads, codec=st.sampled_from(Codec), other=st.sampled_from(Codec))
def test_a_value_of_a_codec_that_was_not_asked_for_is_refused(
    payload: bytes, codec: Codec, other: Codec
) -> None:
    assert read(stored(payload, codec=codec), codec=other) is (
        None if codec == other else Refusal.OTHER_CODEC
    )


@pytest.mark.parametrize("codec", Codec)
def test_a_codec_that_nobody_knows_is_refused_whatever_is_asked_for(codec: Codec) -> None:
    value = bytearray(stored(b"payload"))
    value[5] = max(Codec) + 1
    assert read(bytes(value), codec=codec) is Refusal.UNKNOWN_CODEC


@given(payload=payloads, position=st.data())
def test_any_truncation_is_refused(payload: bytes, position: st.DataObject) -> None:
    value = stored(payload)
    assert read(value[: position.draw(st.integers(0, len(value) - 1))]) in {
        Refusal.TRUNCATED_HEADER,
        Refusal.WRONG_LENGTH,
    }


@given(payload=payloads, more=st.binary(min_size=1, max_size=9))
def test_anything_appended_is_refused(payload: bytes, more: bytes) -> None:
    assert read(stored(payload) + more) is Refusal.WRONG_LENGTH


@given(payload=payloads, position=st.data())
def test_any_flipped_bit_is_refused(payload: bytes, position: st.DataObject) -> None:
    value = bytearray(stored(payload))
    bit = position.draw(st.integers(0, len(value) * 8 - 1))
    value[bit // 8] ^= 1 << bit % 8
    assert read(bytes(value)) is not None


def test_every_single_bit_of_the_header_counts() -> None:
    value = stored(b"payload")
    for bit in range(HEADER_BYTES * 8):
        flipped = bytearray(value)
        flipped[bit // 8] ^= 1 << bit % 8
        assert read(bytes(flipped)) is not None


@given(payload=payloads, key=keys, other=keys)
def test_a_value_under_another_key_is_refused(payload: bytes, key: bytes, other: bytes) -> None:
    expected = None if key == other else Refusal.OTHER_KEY
    assert read(stored(payload, key=key), key=other) is expected


@given(payload=payloads, namespace=namespaces, other=namespaces)
def test_a_value_of_another_namespace_is_refused(payload: bytes, namespace: bytes, other: bytes) -> None:
    expected = None if namespace == other else Refusal.OTHER_NAMESPACE
    assert read(stored(payload, namespace=namespace), namespace=other) is expected


@given(value=st.binary(max_size=400))
def test_arbitrary_bytes_are_refused_without_an_error(value: bytes) -> None:
    assert read(value) is not None


@pytest.mark.parametrize(("namespace", "key"), [(b"short", KEY), (NAMESPACE, b""), (NAMESPACE, bytes(65))])
def test_a_header_for_a_key_that_does_not_fit_is_an_error(namespace: bytes, key: bytes) -> None:
    with pytest.raises(ValueError, match="bytes"):
        encode_header(b"", namespace=namespace, key=key)


@given(numbers=st.binary(max_size=400).map(lambda some: some[: len(some) // 2 * 2]))
def test_compression_loses_nothing(numbers: bytes) -> None:
    assert decompressed(compress(numbers), len(numbers)) == numbers


def test_bfloat16_like_that_of_kv_gets_shorter_by_a_quarter() -> None:
    chunk = bfloat16(np.random.default_rng(1).standard_normal(1 << 17))
    payload = compress(chunk)
    assert len(payload) < 0.75 * len(chunk)
    assert decompressed(payload, len(chunk)) == chunk


@pytest.mark.parametrize("length", [0, 2, 1000, 1 << 18, 1 << 21])
def test_noise_gets_no_longer_than_the_limit(length: int) -> None:
    noise = np.random.default_rng(1).bytes(length)
    payload = compress(noise)
    assert len(payload) <= compressed_limit_bytes(length)
    assert decompressed(payload, length) == noise


def test_half_a_number_cannot_be_compressed() -> None:
    with pytest.raises(ValueError, match="no bfloat16"):
        compress(b"odd")


@given(payload=st.binary(max_size=200), length=st.integers(0, 200))
def test_what_was_not_compressed_is_a_value_error(payload: bytes, length: int) -> None:
    with pytest.raises(ValueError, match="compressed"):
        decompressed(payload, length)


@given(numbers=st.binary(min_size=4, max_size=60), length=st.integers(0, 300))
def test_a_chunk_of_another_length_is_a_value_error(numbers: bytes, length: int) -> None:
    numbers = numbers[: len(numbers) // 2 * 2]
    if length != len(numbers):
        with pytest.raises(ValueError, match="compressed"):
            decompressed(compress(numbers), length)


@given(numbers=st.binary(min_size=40, max_size=60), place=st.integers(0, 10_000), by=st.integers(1, 255))
def test_a_damaged_frame_is_a_value_error_or_other_numbers(numbers: bytes, place: int, by: int) -> None:
    numbers = numbers[: len(numbers) // 2 * 2]
    payload = bytearray(compress(numbers))
    payload[place % len(payload)] ^= by
    try:
        decompressed(bytes(payload), len(numbers))
    except ValueError:
        return
