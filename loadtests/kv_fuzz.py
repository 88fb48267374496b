"""The reader of Redis's replies and the codec of stored values, fed with made-up and damaged bytes for ten minutes.

Hypothesis draws the bytes, the sizes of the pieces they arrive in, and the damage. Counted are crashes (anything but the one declared
error), hangs (a stream that makes no progress) and damaged values that were accepted. All must be zero.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from loadtests.figures import Bar, finish, parser, print_table, told
from memserve.kv.codec import HEADER_BYTES, encode_header, verify
from memserve.kv.resp import Kind, ProtocolError, ReplyReader

SECONDS, QUICK_SECONDS = 600, 40
EXAMPLES = 1000

# Fragments that look like replies, so that the fuzzer gets past the first byte.
FRAGMENT = st.one_of(
    st.binary(max_size=64),
    st.sampled_from(
        [b"\r\n", b"$24\r\n", b"$-1\r\n", b"+OK\r\n", b"-ERR x\r\n", b":1\r\n", b"$0\r\n\r\n", b"$24\r\n" + bytes(24) + b"\r\n", b"_\r\n"]
    ),
    st.integers(-2, 1 << 40).map(lambda length: b"$%d\r\n" % length),
)
STREAM = st.lists(FRAGMENT, max_size=24).map(b"".join)


def fuzz_reader(counts: Counter[str]) -> Callable[[], None]:
    @given(STREAM, st.lists(st.integers(1, 80), min_size=1, max_size=6), st.integers(0, 6))
    def one(stream: bytes, sizes: list[int], asked: int) -> None:
        counts["reader: streams"] += 1
        backing = bytearray(64)
        reader = ReplyReader()
        for _ in range(asked):
            reader.expect(memoryview(backing)[8:16], memoryview(backing)[16:32])
        turn = replies = 0
        try:
            while stream and reader.outstanding:
                buffer = reader.buffer()
                if buffer.nbytes == 0:
                    counts["hangs"] += 1
                    return
                piece = stream[: min(sizes[turn % len(sizes)], buffer.nbytes)]
                buffer[: len(piece)] = piece
                completed = reader.received(len(piece))
                replies += len(completed)
                counts["reader: values"] += sum(reply.kind is Kind.VALUE for reply in completed)
                stream = stream[len(piece) :]
                turn += 1
        except ProtocolError:
            counts["reader: refused"] += 1
        if replies > asked or backing[:8] != bytes(8) or backing[32:] != bytes(32):
            counts["crashes"] += 1

    return one


def fuzz_codec(counts: Counter[str]) -> Callable[[], None]:
    damage = st.lists(
        st.tuples(st.sampled_from(["flip", "cut", "insert", "swap"]), st.integers(0, 2000), st.integers(1, 255)), min_size=1, max_size=4
    )

    @given(st.binary(max_size=300), st.binary(min_size=32, max_size=32), st.binary(min_size=1, max_size=64), damage)
    def one(payload: bytes, namespace: bytes, key: bytes, wounds: list[tuple[str, int, int]]) -> None:
        counts["codec: values"] += 1
        value = encode_header(payload, namespace=namespace, key=key) + payload
        if verify(value[:HEADER_BYTES], value[HEADER_BYTES:], namespace=namespace, key=key) is not None:
            counts["good values refused"] += 1
        hurt = bytearray(value)
        for kind, place, byte in wounds:
            place %= max(1, len(hurt))
            if kind == "flip" and hurt:
                hurt[place] ^= byte
            elif kind == "cut":
                del hurt[place:]
            elif kind == "insert":
                hurt.insert(place, byte)
            elif kind == "swap" and len(hurt) > 1:
                hurt[place], hurt[-1 - place] = hurt[-1 - place], hurt[place]
        if hurt != value:
            counts["codec: damaged"] += 1
            if verify(hurt[:HEADER_BYTES], hurt[HEADER_BYTES:], namespace=namespace, key=key) is None:
                counts["wrong values accepted"] += 1

    return one


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    chosen = parser("kv_fuzz", __doc__).parse_args(arguments)
    lasts_s = QUICK_SECONDS if chosen.quick else SECONDS
    counts: Counter[str] = Counter()
    plan = settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize=False,
    )
    started_s, rounds = time.monotonic(), 0
    while time.monotonic() - started_s < lasts_s:
        for make in (fuzz_reader, fuzz_codec):
            try:
                seed(rounds)(plan(make(counts)))()
            except Exception as error:
                counts["crashes"] += 1
                told(f"{make.__name__}, round {rounds}: {type(error).__name__}: {error}")
        rounds += 1
        if rounds % 10 == 0:
            cases = counts["reader: streams"] + counts["codec: values"]
            told(f"{time.monotonic() - started_s:.0f} of {lasts_s} s, {cases:,} cases")
    print_table(("counted", "number"), [(name, f"{counts[name]:,}") for name in sorted(counts)])
    bars = [Bar(name, counts[name], at_most=0) for name in ("crashes", "hangs", "wrong values accepted", "good values refused")]
    bars.append(Bar("reader: values read whole (the fuzzer reaches them)", counts["reader: values"], at_least=1))
    return finish(bars, {"seconds": lasts_s, "counts": dict(counts)}, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
