"""The reader of Redis's replies: a stream as a whole and in pieces."""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from loadtests.kv.kv_fuzz.faults import Hang, WrongValue
from loadtests.kv.kv_fuzz.stored import STORED, Stored, accepts
from memserve.kv.transport.resp import MAX_LINE_BYTES, MAX_SKIPPED_BYTES, Kind, ProtocolError, ReplyReader
from memserve.kv.transport.wire import PADDING
from memserve.kv.values.envelope import (
    HEADER_BYTES,
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A reply that the reader waits for."""

    entry: Stored | None
    """None for a reply that is a line."""
    at_most: bool = False
    """There is more room than the entry needs, and a shorter value is taken too."""
    padded: bool = False
    """A PING follows."""

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
Replies = list[tuple[Kind, bytes]]


def by_the_book(stream: bytes, asked: Sequence[Asked]) -> tuple[Replies, bool]:
    """The replies in a whole stream, and whether the stream is then to be refused. Says with slices what the
    reader does in pieces.
    """
    replies: Replies = []
    at = 0
    for awaited in asked:
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
            wanted = awaited.takes(length)
            if length > MAX_SKIPPED_BYTES:
                return replies, True
            value, line_end = stream[at : at + length], stream[at + length : at + length + 2]
            if line_end != b"\r\n":
                return replies, not b"\r\n".startswith(line_end)
            replies.append((Kind.VALUE, value) if wanted else (Kind.OTHER_LENGTH, b""))
            at += length + 2
        else:
            return replies, True
        if awaited.padded:
            if not stream[at:].startswith(PADDING):
                return replies, not PADDING.startswith(stream[at:])
            at += len(PADDING)
    return replies, at < len(stream)


def in_pieces(stream: bytes, asked: Sequence[Asked], sizes: Sequence[int]) -> tuple[Replies, bool]:
    """What `ReplyReader` makes of a stream that comes in pieces of these sizes, again and again; 0: as much
    as there is room for.
    """
    reader = ReplyReader()
    values = [memoryview(bytearray(awaited.room_bytes)) for awaited in asked]
    for awaited, value in zip(asked, values, strict=True):
        reader.expect(
            *((value[:HEADER_BYTES], value[HEADER_BYTES:]) if value.nbytes else ()), at_most=awaited.at_most
        )
        if awaited.padded:
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
    announced = sum(1 + awaited.padded for awaited in asked)
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
        # Replies that complete together with the bytes that are refused are not handed out.
        if ended is not refused or came != (replies[: len(came)] if refused else replies):
            raise WrongValue(
                f"in pieces of {split}: {len(came)} replies, refused {ended}; expected "
                f"{len(replies)}, refused {refused}"
            )
    accepted = 0
    values = 0
    for awaited, (kind, value) in zip(asked, replies, strict=False):
        if awaited.entry is not None and kind is Kind.VALUE:
            values += 1
            accepted += accepts(awaited.entry, value)
    return accepted, values - accepted + refused
