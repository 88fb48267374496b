"""Inputs for the checks: from Hypothesis, and the seeds of atheris."""

from __future__ import annotations

import random
from collections.abc import Sequence

from hypothesis import strategies as st

from loadtests.kv.kv_fuzz.chunks import CHUNK_CODECS, CHUNK_CONTROLS, LAYOUT
from loadtests.kv.kv_fuzz.reader import READER_CONTROLS
from loadtests.kv.kv_fuzz.stored import CODEC_CONTROLS, STORED
from memserve.kv.transport.resp import MAX_LINE_BYTES
from memserve.kv.transport.wire import PADDING
from memserve.kv.values.codecs import LosslessChunks


def some_payloads() -> list[bytes]:
    """Of LAYOUT's chunks, encoded in every way and not at all; and a long one of noise."""
    rng = random.Random(2)
    chunks = [
        bytes(LAYOUT.raw_bytes),
        b"\x80\x3f" * LAYOUT.numbers,
        bytes(number & 0x7E for number in rng.randbytes(LAYOUT.raw_bytes)),
    ]
    encoded = [bytes(codec.encode(chunk)) for codec in CHUNK_CODECS for chunk in chunks]
    return [*chunks, *encoded, bytes(LosslessChunks().encode(rng.randbytes(40_000)))]


PAYLOADS = some_payloads()


def damaged(value: bytes, wounds: Sequence[tuple[str, int, int]]) -> bytes:
    """wounds: (what is done, where, and the byte that it is done with)."""
    hurt = bytearray(value)
    for kind, place, byte in wounds:
        place %= max(1, len(hurt))
        if kind == "flip" and hurt:
            hurt[place] ^= byte
        elif kind == "cut":
            del hurt[place:]
        elif kind == "insert":
            hurt.insert(place, byte)
        elif kind == "swap" and hurt:
            hurt[place], hurt[-1 - place] = hurt[-1 - place], hurt[place]
    return bytes(hurt)


def cases(check: str) -> st.SearchStrategy[bytes]:
    """Inputs for a check, near enough to good ones that they get past the first byte."""
    wounds = st.lists(
        st.tuples(
            st.sampled_from(["flip", "cut", "insert", "swap"]), st.integers(0, 21_000), st.integers(1, 255)
        ),
        max_size=3,
    )
    if check == "codec":
        values = st.one_of(
            st.binary(max_size=300),
            st.builds(damaged, st.sampled_from([entry.value for entry in STORED]), wounds),
        )
        controls = st.builds(
            CODEC_CONTROLS.pack, st.integers(0, 255), st.integers(0, 65535), st.integers(0, 255)
        )
        return st.builds(bytes.__add__, controls, values)
    if check == "chunk":
        chunks = st.one_of(st.binary(max_size=600), st.builds(damaged, st.sampled_from(PAYLOADS), wounds))
        lengths = st.one_of(st.integers(0, 300), st.integers(0, 65535), st.just(LAYOUT.raw_bytes // 2))
        return st.builds(bytes.__add__, st.builds(CHUNK_CONTROLS.pack, st.integers(0, 1), lengths), chunks)
    lines = [b"\r\n", b"$-1\r\n", b"+OK\r\n", b"-ERR x\r\n", b":1\r\n", b"$0\r\n\r\n", b"_\r\n", b"$144\r\n"]
    lines += [PADDING, b"+" + bytes(MAX_LINE_BYTES)]
    fragment = st.one_of(
        st.sampled_from([entry.reply for entry in STORED]),
        st.sampled_from([entry.reply + PADDING for entry in STORED]),
        st.sampled_from(lines),
        st.builds(damaged, st.sampled_from([*(entry.reply for entry in STORED), PADDING]), wounds),
        st.builds(lambda body: b"$%d\r\n%s\r\n" % (len(body), body), st.binary(max_size=300)),
        st.integers(-2, 1 << 40).map(lambda length: b"$%d\r\n" % length),
        st.binary(max_size=64),
    )
    sizes = st.one_of(st.just(0), st.integers(1, 40), st.integers(1, 65535))
    controls = st.builds(READER_CONTROLS.pack, st.integers(0, 255), st.integers(0, 255), sizes, sizes, sizes)
    return st.builds(bytes.__add__, controls, st.lists(fragment, max_size=6).map(b"".join))


def seeds(check: str) -> list[bytes]:
    """Good inputs, from which atheris starts."""
    if check == "codec":
        return [CODEC_CONTROLS.pack(32, 0, 1) + entry.value for entry in STORED]
    if check == "chunk":
        return [
            CHUNK_CONTROLS.pack(which, LAYOUT.raw_bytes // 2) + payload
            for which in (0, 1)
            for payload in PAYLOADS
        ]
    streams = [entry.reply for entry in STORED] + [b"$-1\r\n", b"+OK\r\n", b"-ERR\r\n", b"$3\r\nabc\r\n"]
    streams += [
        STORED[0].reply + STORED[1].reply,
        STORED[1].reply + STORED[0].reply,
        STORED[2].reply + b"+OK\r\n" + STORED[0].reply,
    ]
    streams += [PADDING.join([STORED[0].reply, b"$-1\r\n", STORED[1].reply, b""])]
    return [
        READER_CONTROLS.pack(choice, flags, *sizes) + stream
        for stream in streams
        for choice in (0b00000100, 0b10001110)
        for flags in (0b0000, 0b0111, 0b11110000)
        for sizes in ((5, 0, 0), (1, 7, 130))
    ]
