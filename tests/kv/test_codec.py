"""What was stored is what is loaded, or it is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memserve.kv.codec import HEADER_BYTES, Refusal, encode_header, verify

NAMESPACE = bytes(range(32))
KEY = bytes(range(100, 136))
payloads = st.binary(max_size=300)
keys = st.binary(min_size=1, max_size=64)
namespaces = st.binary(min_size=32, max_size=32)


def stored(payload: bytes, *, namespace: bytes = NAMESPACE, key: bytes = KEY) -> bytes:
    return encode_header(payload, namespace=namespace, key=key) + payload


def read(value: bytes, *, namespace: bytes = NAMESPACE, key: bytes = KEY) -> Refusal | None:
    view = memoryview(value)
    return verify(view[:HEADER_BYTES], view[HEADER_BYTES:], namespace=namespace, key=key)


@given(payload=payloads, namespace=namespaces, key=keys)
def test_what_was_stored_is_accepted(payload: bytes, namespace: bytes, key: bytes) -> None:
    assert read(stored(payload, namespace=namespace, key=key), namespace=namespace, key=key) is None


@given(payload=payloads, position=st.data())
def test_any_truncation_is_refused(payload: bytes, position: st.DataObject) -> None:
    value = stored(payload)
    assert read(value[: position.draw(st.integers(0, len(value) - 1))]) in {Refusal.TRUNCATED_HEADER, Refusal.WRONG_LENGTH}


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
