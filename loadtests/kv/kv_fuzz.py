"""The reader of Redis's replies, the stored value and the chunks encoded in it, fed with made-up and damaged
bytes for ten minutes.

Hypothesis puts streams together from replies, damaged ones and noise; atheris (libFuzzer) changes bytes where
that reaches new code. Each gets half of the time, in processes of their own, so that whatever a fuzzer does
to one is counted and not suffered. Both feed the same checks. A crash is any exception but the declared one,
or the end of the process; a hang is a case without an end; a wrong value is one that is accepted and is not,
byte for byte, what was stored under its key, or replies that depend on where the stream was split.
"""

from __future__ import annotations

import base64
import itertools
import mmap
import random
import re
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import Final

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from memserve.kv.transport.resp import MAX_LINE_BYTES, MAX_SKIPPED_BYTES, Kind, ProtocolError, ReplyReader
from memserve.kv.transport.wire import PADDING
from memserve.kv.values.codecs import ChunkCodec, Int8Chunks, LosslessChunks
from memserve.kv.values.envelope import (
    HEADER_BYTES,
    MAX_KEY_BYTES,
    NAMESPACE_BYTES,
    Verification,
    encode_header,
)
from memserve.kv.values.int8 import ChunkLayout

SECONDS, QUICK_SECONDS = 600, 36
EXAMPLES = 1000
HANG_S = 10
MAX_INPUT_BYTES = 48 << 10
RSS_LIMIT_MIB = 1024
# libFuzzer's exit status after a case that took longer than -timeout.
LIBFUZZER_TIMEOUT: Final = 70


class WrongValue(Exception):
    """A value that was never stored is accepted, one that was is refused, or replies depend on how they
    arrive.
    """


class Hang(Exception):
    """A reader that waits for bytes and has no room for any."""


class Count(IntEnum):
    """What is counted for each fuzzer and check; accepted: values; refused: values or streams."""

    CASES = 0
    ACCEPTED = 1
    REFUSED = 2
    CRASHES = 3
    HANGS = 4
    WRONG = 5


@dataclass(frozen=True, slots=True)
class Stored:
    """value: header and payload."""

    namespace: bytes
    key: bytes
    value: bytes

    @property
    def reply(self) -> bytes:
        return b"$%d\r\n%s\r\n" % (len(self.value), self.value)


def stored(namespace: bytes, key: bytes, payload_bytes: int, rng: random.Random) -> Stored:
    payload = rng.randbytes(payload_bytes)
    return Stored(namespace, key, encode_header(payload, namespace=namespace, key=key) + payload)


def some_stored() -> tuple[Stored, ...]:
    """Two of one length, one larger than the reader's scratch, and two of another namespace or key that must
    not pass for the first.
    """
    rng = random.Random(1)
    own, other = rng.randbytes(NAMESPACE_BYTES), rng.randbytes(NAMESPACE_BYTES)
    shapes = [
        (own, b"a" * 32, 24),
        (own, b"b" * 32, 24),
        (own, b"c" * MAX_KEY_BYTES, 20_000),
        (other, b"a" * 32, 24),
        (own, b"a" * 31, 24),
    ]
    return tuple(stored(*shape, rng) for shape in shapes)


STORED = some_stored()


@dataclass(frozen=True, slots=True)
class Asked:
    """entry: None for a reply that is a line. at_most: there is more room than the entry needs, and a shorter
    value is taken too.

    padded: followed by a PING.
    """

    entry: Stored | None
    at_most: bool = False
    padded: bool = False

    @property
    def room_bytes(self) -> int:
        return 0 if self.entry is None else len(self.entry.value) + MORE_ROOM_BYTES * self.at_most

    def takes(self, length: int) -> bool:
        return self.entry is not None and (
            length <= self.room_bytes if self.at_most else length == self.room_bytes
        )


# What may be asked for: three of the values, and a reply that is a line.
ASKED = (*STORED[:3], None)
MORE_ROOM_BYTES = 100
# Of an input to the reader: four two-bit numbers of what is asked, four bits of which have a PING behind them
# and four of which are of at most a length, and three sizes of pieces; 0: as much as there is room for.
READER_CONTROLS = struct.Struct(">2B3H")
# Of an input to the codec: the length of the key, and where and how a value is damaged.
CODEC_CONTROLS = struct.Struct(">BHB")
# Of an input to the chunk codecs: which, and half the length of the chunk that bytes are to be decoded to.
CHUNK_CONTROLS = struct.Struct(">BH")
LAYOUT = ChunkLayout(
    dtype="bfloat16", tensors=1, blocks=1, block_tokens=16, kv_heads=1, head_size=16, packing="amx"
)
CHUNK_CODECS: tuple[ChunkCodec, ...] = (LosslessChunks(), Int8Chunks(LAYOUT))
GUARD = b"guard"

Replies = list[tuple[Kind, bytes]]


def by_the_book(stream: bytes, asked: Sequence[Asked]) -> tuple[Replies, bool]:
    """The replies in a whole stream, and whether the stream is then to be refused. Says with slices what the
    reader does in pieces.
    """
    replies: Replies = []
    at = 0
    for one in asked:
        end = stream.find(b"\r\n", at, at + MAX_LINE_BYTES)
        if end < 0:
            return replies, len(stream) - at >= MAX_LINE_BYTES
        line, at = stream[at:end], end + 2
        if line[:1] in (b"+", b":", b"-"):
            replies.append((Kind.ERROR if line[:1] == b"-" else Kind.OK, line[1:]))
        elif line in (b"$-1", b"_"):
            replies.append((Kind.NOTHING, b""))
        elif re.fullmatch(rb"\$\d{1,10}", line):
            length = int(line[1:])
            wanted = one.takes(length)
            if length > MAX_SKIPPED_BYTES:
                return replies, True
            value, line_end = stream[at : at + length], stream[at + length : at + length + 2]
            if line_end != b"\r\n":
                return replies, not b"\r\n".startswith(line_end)
            replies.append((Kind.VALUE, value) if wanted else (Kind.OTHER_LENGTH, b""))
            at += length + 2
        else:
            return replies, True
        if one.padded:
            if not stream[at:].startswith(PADDING):
                return replies, not PADDING.startswith(stream[at:])
            at += len(PADDING)
    return replies, at < len(stream)


def in_pieces(stream: bytes, asked: Sequence[Asked], sizes: Sequence[int]) -> tuple[Replies, bool]:
    """What `ReplyReader` makes of a stream that comes in pieces of these sizes, again and again; 0: as much
    as there is room for.
    """
    reader = ReplyReader()
    values = [memoryview(bytearray(one.room_bytes)) for one in asked]
    for one, value in zip(asked, values, strict=True):
        reader.expect(
            *((value[:HEADER_BYTES], value[HEADER_BYTES:]) if value.nbytes else ()), at_most=one.at_most
        )
        if one.padded:
            reader.expect_exactly(PADDING)
    replies: Replies = []
    at = 0
    for size in itertools.cycle(sizes):
        if at == len(stream):
            break
        piece = stream[at : at + (size or len(stream))]
        received = put(reader.buffers(), piece)
        if not received:
            raise Hang(f"no room for byte {at}")
        at += received
        try:
            completed = reader.received(received)
        except ProtocolError:
            return replies, True
        for reply in completed:
            value = values[len(replies)]
            if any(value[reply.value_bytes :]) and reply.kind is Kind.VALUE:
                raise WrongValue(f"written behind the end of {reply.value_bytes} bytes")
            replies.append(
                (reply.kind, bytes(value[: reply.value_bytes]) if reply.kind is Kind.VALUE else reply.line)
            )
    announced = sum(1 + one.padded for one in asked)
    if not len(asked) <= len(replies) + reader.outstanding <= announced:
        raise WrongValue(
            f"{len(asked)} replies announced, {len(replies)} came, {reader.outstanding} outstanding"
        )
    return replies, False


def put(buffers: Sequence[memoryview], piece: bytes) -> int:
    """Fill the buffers, one after the other. Returns how many bytes there was room for."""
    room = sum(buffer.nbytes for buffer in buffers)
    left = piece[:room]
    for buffer in buffers:
        buffer[: len(left)] = left[: buffer.nbytes]
        left = left[buffer.nbytes :]
    return min(room, len(piece))


def check_reader(case: bytes) -> tuple[int, int]:
    """Read a stream as a whole and in pieces, and verify the values that come. case: READER_CONTROLS, then
    the stream.

    Returns the values accepted and refused; a refused stream counts as a refused value. Raises WrongValue,
    Hang, or what crashed.
    """
    choice, flags, *sizes = READER_CONTROLS.unpack(
        case[: READER_CONTROLS.size].ljust(READER_CONTROLS.size, b"\0")
    )
    stream = case[READER_CONTROLS.size :]
    asked = [
        Asked(ASKED[choice >> 2 * place & 3], bool(flags >> place & 1), bool(flags >> 4 + place & 1))
        for place in range(4)
    ]
    replies, refused = by_the_book(stream, asked)
    for split in ((0,), sizes):
        came, ended = in_pieces(stream, asked, split)
        # What completed together with the bytes that were refused is not told any more.
        if ended is not refused or came != (replies[: len(came)] if refused else replies):
            raise WrongValue(
                f"in pieces of {split}: {len(came)} replies, refused {ended}; expected "
                f"{len(replies)}, refused {refused}"
            )
    accepted = 0
    values = 0
    for one, (kind, value) in zip(asked, replies, strict=False):
        if one.entry is not None and kind is Kind.VALUE:
            values += 1
            accepted += accepts(one.entry, value)
    return accepted, values - accepted + refused


def check_codec(case: bytes) -> tuple[int, int]:
    """Verify bytes as each of the stored values, then store them, load them, and load them damaged. case:
    CODEC_CONTROLS, then the bytes.

    Returns the values accepted and refused. Raises WrongValue or what crashed.
    """
    length, place, damage = CODEC_CONTROLS.unpack(
        case[: CODEC_CONTROLS.size].ljust(CODEC_CONTROLS.size, b"\0")
    )
    content = case[CODEC_CONTROLS.size :]
    accepted = sum(accepts(entry, content) for entry in STORED)
    namespace, key = (
        content[:NAMESPACE_BYTES].ljust(NAMESPACE_BYTES, b"\0"),
        content[: 1 + length % MAX_KEY_BYTES] or b"\0",
    )
    own = Stored(namespace, key, encode_header(content, namespace=namespace, key=key) + content)
    damaged = bytearray(own.value)
    place %= len(damaged)
    if damage:
        damaged[place] ^= damage
    else:
        del damaged[place:]
    accepted += accepts(own, own.value) + accepts(own, bytes(damaged))
    return accepted, len(STORED) + 2 - accepted


def check_chunk(case: bytes) -> tuple[int, int]:
    """Decode bytes, and encode them and decode that. case: CHUNK_CONTROLS, then the bytes.

    Returns what was decoded, and what was refused. Raises WrongValue or what crashed.
    """
    which, half_length = CHUNK_CONTROLS.unpack(case[: CHUNK_CONTROLS.size].ljust(CHUNK_CONTROLS.size, b"\0"))
    content = case[CHUNK_CONTROLS.size :]
    codec = CHUNK_CODECS[which % len(CHUNK_CODECS)]
    decoded = decode_guarded(codec, content, 2 * half_length) is not None
    chunk = content[: len(content) // 2 * 2]
    if isinstance(codec, Int8Chunks):
        chunk = content[: LAYOUT.raw_bytes].ljust(LAYOUT.raw_bytes, b"\0")
        decoded = (
            decode_guarded(
                codec, content[: LAYOUT.int8_bytes].ljust(LAYOUT.int8_bytes, b"\0"), LAYOUT.raw_bytes
            )
            is not None
        )
    try:
        payload = bytes(codec.encode(chunk))
    except ValueError:
        return int(decoded), 2 - decoded
    if len(payload) > codec.limit_bytes(len(chunk)):
        raise WrongValue(f"a chunk of {len(chunk)} bytes became {len(payload)}")
    came = decode_guarded(codec, payload, len(chunk))
    if came is None or (came != chunk and not isinstance(codec, Int8Chunks)):
        raise WrongValue(f"a chunk of {len(chunk)} bytes did not come back")
    return 1 + decoded, 1 - decoded


def decode_guarded(codec: ChunkCodec, payload: bytes, chunk_bytes: int) -> bytes | None:
    """None for what the codec refuses. Raises WrongValue when it writes outside of the chunk."""
    memory = bytearray(GUARD + bytes(chunk_bytes) + GUARD)
    try:
        codec.decode(memoryview(payload), memoryview(memory)[len(GUARD) : -len(GUARD)])
        return bytes(memory[len(GUARD) : -len(GUARD)])
    except ValueError:
        return None
    finally:
        if not (memory.startswith(GUARD) and memory.endswith(GUARD)):
            raise WrongValue(f"{len(payload)} bytes were decoded outside of a chunk of {chunk_bytes}")


def accepts(entry: Stored, value: bytes) -> bool:
    """Whether the codec takes `value` for `entry`. Raises WrongValue when it should not, or does not and
    should.
    """
    head, payload = memoryview(value)[:HEADER_BYTES], memoryview(value)[HEADER_BYTES:]
    at_once, coming = (Verification(payload, namespace=entry.namespace, key=entry.key) for _ in range(2))
    for end in (payload.nbytes // 3, payload.nbytes // 3, payload.nbytes - 1):
        coming.came(end)
    refusal = at_once.refusal(head)
    if coming.refusal(head) is not refusal:
        raise WrongValue(f"{len(value)} bytes are {refusal} at once and something else in pieces")
    accepted = refusal is None
    if accepted is not (value == entry.value):
        raise WrongValue(
            f"{len(value)} bytes under the key {entry.key!r} are {'accepted' if accepted else 'refused'}"
        )
    return accepted


CHECKS: Final[dict[str, Callable[[bytes], tuple[int, int]]]] = {
    "reader": check_reader,
    "codec": check_codec,
    "chunk": check_chunk,
}


def open_tally(path: Path) -> memoryview:
    """[len(Count)] numbers in a file, which outlive the process that counts."""
    with path.open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 8 * len(Count))).cast("Q")


def check_and_count(check: str, tally: memoryview, case: bytes) -> None:
    """Raises what the check raises, so that the fuzzer keeps the case."""
    tally[Count.CASES] += 1
    try:
        accepted, refused = CHECKS[check](case)
    except Exception as error:
        tally[{WrongValue: Count.WRONG, Hang: Count.HANGS}.get(type(error), Count.CRASHES)] += 1
        report(f"{check}: {type(error).__name__}: {error}: {base64.b64encode(case).decode()}")
        raise
    tally[Count.ACCEPTED] += accepted
    tally[Count.REFUSED] += refused


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


def fuzz_with_hypothesis(check: str, tally: memoryview, lasts_s: float, folder: Path) -> None:
    plan = settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    until_s, rounds = time.monotonic() + lasts_s, 0
    while time.monotonic() < until_s:
        try:
            seed(rounds)(plan(given(cases(check))(lambda case: check_and_count(check, tally, case))))()
        except Exception as error:  # counted and told already
            report(f"round {rounds}: {type(error).__name__}")
        rounds += 1


def fuzz_with_atheris(check: str, tally: memoryview, lasts_s: float, folder: Path) -> None:
    """Does not return: libFuzzer ends the process."""
    import atheris  # type: ignore[import-untyped]

    corpus = folder / "corpus"
    corpus.mkdir()
    for number, case in enumerate(seeds(check)):
        (corpus / str(number)).write_bytes(case)
    limits = [
        f"-max_total_time={lasts_s:.0f}",
        f"-timeout={HANG_S}",
        f"-rss_limit_mb={RSS_LIMIT_MIB}",
        f"-max_len={MAX_INPUT_BYTES}",
    ]
    quiet = ["-verbosity=0", "-print_final_stats=0"]
    atheris.Setup(
        [sys.argv[0], *limits, *quiet, f"-artifact_prefix={folder}/", str(corpus)],
        partial(check_and_count, check, tally),
    )
    atheris.Fuzz()


# What each fuzzer's process runs. Only what is imported under atheris's hook tells it which code was reached.
PROGRAMS: Final = {
    "hypothesis": "from loadtests.kv.kv_fuzz import fuzz_with_hypothesis as fuzz, run_child\nrun_child(fuzz)",
    "atheris": (
        "import atheris\n"
        "with atheris.instrument_imports(include=['memserve']):\n"
        "    from loadtests.kv.kv_fuzz import fuzz_with_atheris as fuzz, run_child\n"
        "run_child(fuzz)"
    ),
}


def run_child(fuzz: Callable[[str, memoryview, float, Path], None]) -> None:
    """The whole of a fuzzer's process. Arguments: check, seconds, folder."""
    check, lasts_s, folder = sys.argv[1:]
    fuzz(check, open_tally(Path(folder) / "tally"), float(lasts_s), Path(folder))


def run_fuzzer(fuzzer: str, check: str, lasts_s: float) -> list[int]:
    """Run one fuzzer on one check. Returns [len(Count)] numbers."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tally"
        path.write_bytes(bytes(8 * len(Count)))
        tally = open_tally(path)
        child = subprocess.Popen(
            [sys.executable, "-c", PROGRAMS[fuzzer], check, str(lasts_s), folder], stdout=sys.stderr
        )
        seen, since_s = 0, time.monotonic()
        while child.poll() is None:
            time.sleep(0.2)
            if tally[Count.CASES] != seen:
                seen, since_s = tally[Count.CASES], time.monotonic()
            # Longer than libFuzzer's own limit, which tells more. Before the first case everything is
            # imported.
            elif time.monotonic() - since_s > 3 * HANG_S:
                tally[Count.HANGS] += 1
                child.kill()
                child.wait()
        counts = list(tally)
    if child.returncode == LIBFUZZER_TIMEOUT:
        counts[Count.HANGS] += 1
    elif child.returncode and not sum(counts[Count.CRASHES :]):
        counts[Count.CRASHES] += 1
    report(
        f"{fuzzer}, {check}: {counts[Count.CASES]:,} cases in {lasts_s:.0f} s, exit status {child.returncode}"
    )
    return counts


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    chosen = parser("kv_fuzz", __doc__).parse_args(arguments)
    lasts_s = QUICK_SECONDS if chosen.quick else SECONDS
    parts = [(fuzzer, check) for check in CHECKS for fuzzer in PROGRAMS]
    counts = {
        f"{fuzzer}, {check}": run_fuzzer(fuzzer, check, lasts_s / len(parts)) for fuzzer, check in parts
    }
    columns = ("fuzzer", "cases", "values accepted", "refused", "crashes", "hangs", "wrong values")
    print_table(columns, [(name, *(f"{number:,}" for number in row)) for name, row in counts.items()])
    bars = [
        Bar(name, sum(row[count] for row in counts.values()), at_most=0)
        for name, count in (("crashes", Count.CRASHES), ("hangs", Count.HANGS), ("wrong values", Count.WRONG))
    ]
    for count, name in ((Count.ACCEPTED, "accepted"), (Count.REFUSED, "refused")):
        bars.append(
            Bar(
                f"values {name}, by the fuzzer that reached fewest",
                min(row[count] for row in counts.values()),
                at_least=1,
            )
        )
    named = {name: {count.name.lower(): row[count] for count in Count} for name, row in counts.items()}
    return finish(bars, {"seconds": lasts_s, "counts": named}, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
