"""Chunks through the store in each codec, over a real Redis: they come back, or they are refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memserve.kv.keys import redis_key
from memserve.kv.outcomes import Put
from memserve.kv.store import RedisChunkStore
from memserve.kv.transport.limits import CacheLimits
from memserve.kv.transport.wire import MAX_IN_FLIGHT
from memserve.kv.values.codecs import RAW_CHUNKS, ChunkCodec, Int8Chunks, LosslessChunks, chunk_codec
from memserve.kv.values.envelope import HEADER_BYTES, Codec, Refusal, encode_header
from memserve.kv.values.int8 import ChunkLayout, from_int8, to_int8
from tests.kv.one_chunk import get, put
from tests.kv.redis_server import RedisServer

NAMESPACE = "ab" * 32
LAYOUT = ChunkLayout(
    dtype="bfloat16", tensors=2, blocks=2, block_tokens=16, kv_heads=1, head_size=32, packing="vec"
)
CHUNK_BYTES = LAYOUT.raw_bytes
TOO_LARGE, INFINITY = 0x7F00, 0x7F80  # as bfloat16: 2^127 is too large for int8
CODECS: dict[Codec, ChunkCodec] = {
    Codec.RAW: RAW_CHUNKS,
    Codec.LOSSLESS: LosslessChunks(),
    Codec.INT8: Int8Chunks(LAYOUT),
}
KEYS = [bytes([number]) * 36 for number in range(3 * MAX_IN_FLIGHT)]


def kv(seed: int, of: ChunkLayout = LAYOUT, share_of_zeros: float = 0.0) -> bytes:
    """A chunk of bfloat16 as KV has them."""
    rng = np.random.default_rng(seed)
    numbers = rng.standard_normal(of.numbers, np.float32) * (rng.random(of.numbers) >= share_of_zeros)
    return (numbers.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16).tobytes()


def as_loaded(code: Codec, chunk: bytes) -> bytes:
    if code is not Codec.INT8:
        return chunk
    loaded = bytearray(len(chunk))
    from_int8(to_int8(chunk, LAYOUT), memoryview(loaded), LAYOUT)
    return bytes(loaded)


@pytest.fixture(scope="module", params=Codec, ids=lambda code: code.name.lower())
def code(request: pytest.FixtureRequest) -> Codec:
    return Codec(request.param)


@pytest.fixture(scope="module")
def store(shared_redis_server: RedisServer, code: Codec) -> Iterator[RedisChunkStore]:
    opened = store_on(shared_redis_server, CODECS[code])
    yield opened
    opened.close()


def store_on(server: RedisServer, codec: ChunkCodec) -> RedisChunkStore:
    return RedisChunkStore(
        server.url, NAMESPACE, codec=codec, limits=CacheLimits(io_s=5, lookup_s=5, connect_s=5)
    )


def refusals(store: RedisChunkStore) -> dict[Refusal, int]:
    return dict(store.take_stats().refused)


@settings(max_examples=25)
@given(
    seeds=st.lists(st.integers(0, 99), max_size=len(KEYS)), share_of_zeros=st.sampled_from([0.0, 0.5, 1.0])
)
def test_what_is_stored_is_loaded(
    store: RedisChunkStore,
    code: Codec,
    shared_redis_server: RedisServer,
    seeds: list[int],
    share_of_zeros: float,
) -> None:
    shared_redis_server.client.flushall()
    chunks = [kv(seed, share_of_zeros=share_of_zeros) for seed in seeds]
    keys = KEYS[: len(chunks)]
    assert store.store(keys, chunks, budget_s=10) == [Put.STORED] * len(chunks)
    destinations = [bytearray(CHUNK_BYTES) for _ in chunks]
    assert store.load(keys, [memoryview(chunk) for chunk in destinations], budget_s=10) == [True] * len(
        chunks
    )
    assert [bytes(chunk) for chunk in destinations] == [as_loaded(code, chunk) for chunk in chunks]
    stored_bytes = [shared_redis_server.client.strlen(redis_key(NAMESPACE, key)) for key in keys]
    assert store.ledger.usage().stored_bytes == sum(stored_bytes)
    stats = store.take_stats()
    assert stats.written_bytes == stats.read_bytes == sum(stored_bytes) - HEADER_BYTES * len(chunks)


def test_chunks_that_fill_the_wire_are_loaded_where_they_belong(shared_redis_server: RedisServer) -> None:
    of = ChunkLayout(
        dtype="bfloat16", tensors=24, blocks=2, block_tokens=32, kv_heads=2, head_size=64, packing="vec"
    )
    shared_redis_server.client.flushall()
    store = store_on(shared_redis_server, LosslessChunks())
    chunks = [kv(number, of) for number in range(7)]
    assert store.store(KEYS[:7], chunks, budget_s=30) == [Put.STORED] * 7
    destinations = [bytearray(of.raw_bytes) for _ in chunks]
    assert store.load(KEYS[:7], [memoryview(chunk) for chunk in destinations], budget_s=30) == [True] * 7
    assert [bytes(chunk) for chunk in destinations] == chunks
    assert store.take_stats().written_bytes < 0.75 * 7 * of.raw_bytes
    store.close()


@pytest.mark.parametrize("other", Codec)
def test_what_another_codec_stored_is_a_miss(
    redis_server: RedisServer, store: RedisChunkStore, code: Codec, other: Codec
) -> None:
    writer = store_on(redis_server, CODECS[other])
    assert put(writer, KEYS[0], kv(1)) is Put.STORED
    writer.close()
    assert (get(store, KEYS[0], CHUNK_BYTES) is None) is (code is not other)
    if code is not other:
        assert set(refusals(store)) <= {Refusal.OTHER_CODEC, Refusal.WRONG_LENGTH}
        assert store.exists_many(KEYS[:1]) == [False]


@settings(max_examples=60)
@given(position=st.integers(0, 1 << 20), bit=st.integers(0, 7), cut=st.booleans())
def test_a_damaged_value_is_refused_and_removed_and_its_neighbours_are_loaded(
    store: RedisChunkStore, code: Codec, shared_redis_server: RedisServer, position: int, bit: int, cut: bool
) -> None:
    client = shared_redis_server.client
    client.flushall()
    chunks = [kv(number) for number in range(3)]
    assert store.store(KEYS[:3], chunks, budget_s=10) == [Put.STORED] * 3
    name = redis_key(NAMESPACE, KEYS[1])
    value = bytearray(client.get(name))  # type: ignore[arg-type]
    position %= len(value)
    if cut:
        del value[position:]
    else:
        value[position] ^= 1 << bit
    client.set(name, bytes(value))
    store.take_stats()
    destinations = [bytearray(CHUNK_BYTES) for _ in chunks]
    assert store.load(KEYS[:3], [memoryview(chunk) for chunk in destinations], budget_s=10) == [
        True,
        False,
        True,
    ]
    assert [bytes(destinations[number]) for number in (0, 2)] == [
        as_loaded(code, chunks[number]) for number in (0, 2)
    ]
    assert sum(refusals(store).values()) == 1
    assert store.exists_many(KEYS[:3]) == [True, False, True]


@pytest.mark.parametrize("more", [1, 1000, 1 << 20])
def test_a_value_longer_than_any_chunk_encoded_is_thrown_away_and_the_next_one_is_loaded(
    store: RedisChunkStore, code: Codec, redis_server: RedisServer, more: int
) -> None:
    payload = bytes(CODECS[code].limit_bytes(CHUNK_BYTES) + more)
    value = encode_header(payload, namespace=bytes.fromhex(NAMESPACE), key=KEYS[0], codec=code) + payload
    redis_server.client.set(redis_key(NAMESPACE, KEYS[0]), value)
    put(store, KEYS[1], kv(1))
    destinations = [bytearray(CHUNK_BYTES) for _ in range(2)]
    store.take_stats()
    assert store.load(KEYS[:2], [memoryview(chunk) for chunk in destinations], budget_s=10) == [False, True]
    stats = store.take_stats()
    assert (dict(stats.refused), stats.unanswered) == ({Refusal.WRONG_LENGTH: 1}, 0)


@pytest.mark.parametrize(
    "payload", [b"", b"noise", bytes(CHUNK_BYTES // 2), LosslessChunks().encode(bytes(2000))]
)
def test_what_verifies_and_is_no_chunk_encoded_is_refused_and_removed(
    redis_server: RedisServer, payload: bytes
) -> None:
    store = store_on(redis_server, LosslessChunks())
    value = (
        encode_header(payload, namespace=bytes.fromhex(NAMESPACE), key=KEYS[0], codec=Codec.LOSSLESS)
        + payload
    )
    redis_server.client.set(redis_key(NAMESPACE, KEYS[0]), value)
    destination = memoryview(bytearray(CHUNK_BYTES))
    assert store.load(KEYS[:1], [destination], budget_s=10) == [False]
    destination.release()  # nothing holds it
    assert refusals(store) == {Refusal.UNDECODABLE: 1}
    assert store.exists_many(KEYS[:1]) == [False]
    store.close()


def test_a_chunk_that_cannot_be_encoded_fails_alone_and_is_not_counted(redis_server: RedisServer) -> None:
    store = store_on(redis_server, CODECS[Codec.INT8])
    infinite = np.frombuffer(kv(1), np.uint16).copy()
    infinite[77] = INFINITY
    chunks = [memoryview(kv(0)), memoryview(infinite.tobytes()), memoryview(kv(2))]
    assert store.store(KEYS[:3], chunks, budget_s=10) == [Put.STORED, Put.FAILED, Put.STORED]
    for chunk in chunks:
        chunk.release()  # nothing holds it
    assert store.exists_many(KEYS[:3]) == [True, False, True]
    usage = store.ledger.usage()
    assert (usage.chunks, usage.stored_bytes) == (2, 2 * (HEADER_BYTES + LAYOUT.int8_bytes))
    assert store.take_stats().store_failures == 1
    store.close()


def test_a_chunk_that_is_there_is_not_encoded(redis_server: RedisServer) -> None:
    store = store_on(redis_server, CODECS[Codec.INT8])
    put(store, KEYS[0], kv(0))
    assert put(store, KEYS[0], b"not even a chunk") is Put.ALREADY_PRESENT
    store.close()


def test_a_value_that_the_ledger_does_not_count_is_counted_with_no_less_than_it_has(
    store: RedisChunkStore, redis_server: RedisServer
) -> None:
    noise = np.random.default_rng(1).integers(0, TOO_LARGE, LAYOUT.numbers // 2, np.uint16).tobytes() * 2
    put(store, KEYS[0], noise)
    value = redis_server.client.get(redis_key(NAMESPACE, KEYS[0]))
    assert isinstance(value, bytes)
    redis_server.client.flushall()
    redis_server.client.set(redis_key(NAMESPACE, KEYS[0]), value)
    assert put(store, KEYS[0], noise) is Put.ALREADY_PRESENT
    assert store.ledger.usage().stored_bytes >= len(value)


@pytest.mark.parametrize("code", Codec)
def test_a_codec_is_made_from_plain_values(code: Codec) -> None:
    layout = asdict(LAYOUT) if code is Codec.INT8 else None
    codec = chunk_codec(code.name.lower(), layout, chunk_bytes=CHUNK_BYTES)
    assert codec.code is code
    assert codec.limit_bytes(CHUNK_BYTES) == CODECS[code].limit_bytes(CHUNK_BYTES)


@pytest.mark.parametrize(
    ("name", "layout", "chunk_bytes", "why"),
    [
        ("int4", None, CHUNK_BYTES, "codec must be raw, lossless, int8, not 'int4'"),
        ("RAW", None, CHUNK_BYTES, "codec must be"),
        ("int8", None, CHUNK_BYTES, "needs the layout"),
        (
            "int8",
            asdict(LAYOUT),
            CHUNK_BYTES + 2,
            f"{CHUNK_BYTES} bytes, the engine's have {CHUNK_BYTES + 2}",
        ),
        ("int8", {**asdict(LAYOUT), "packing": "neon"}, CHUNK_BYTES, "not known"),
        ("int8", {**asdict(LAYOUT), "colour": "red"}, CHUNK_BYTES, "colour"),
        ("int8", {"dtype": "bfloat16"}, CHUNK_BYTES, "missing"),
    ],
)
def test_a_codec_that_cannot_be_is_refused_with_the_reason(
    name: str, layout: dict[str, Any] | None, chunk_bytes: int, why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        chunk_codec(name, layout, chunk_bytes=chunk_bytes)
