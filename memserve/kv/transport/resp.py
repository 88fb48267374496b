"""The replies of Redis to GET, SET and PING, read without I/O.

A value goes straight into its place, and is never copied in Python.

The reader works like this:

1. The caller announces each reply before its bytes are received: a value with its places, a line, or a reply
   that can be no other.
2. `buffers` says where the next bytes go. Outside a value that is a small scratch buffer. Inside a value it
   is the rest of the value's places, and behind them some scratch.
3. The caller receives into the buffers, and calls `received` with the number of bytes.
4. `received` reads lines from the scratch. The first line of a value names its length. If the length fits the
   places, the bytes that are in the scratch already are moved into the places, and step 2 goes on with the
   rest. If it does not fit, the value is skipped.
5. A value is complete when its line end has arrived too. Only then is its reply returned.

The scratch must never take many bytes of a value, because those are copied. So no more is received into the
scratch than what comes before the large part of the next value (`start_bytes`). And no more may be waited for
than what is certain to come (`least_bytes`): waiting for more would never end.

Source: the RESP2 section of https://redis.io/docs/latest/develop/reference/protocol-spec/
"""

from __future__ import annotations

from collections import deque
from enum import Enum, auto
from typing import Final, NamedTuple

# A line is short: a type, a length, or an error's text.
MAX_LINE_BYTES: Final = 1024
# A value of another length than expected is skipped. A larger value than this is not worth skipping.
MAX_SKIPPED_BYTES: Final = 64 << 20
_SCRATCH_BYTES: Final = 16 << 10
# The shortest reply is a type and a line end, such as an error without a text.
_LEAST_REPLY_BYTES: Final = 3


class ProtocolError(Exception):
    """The bytes are not RESP2, or no reply was expected. The connection cannot be used any more."""


class Kind(Enum):
    """What a reply is."""

    VALUE = auto()
    """A value, which is in its place."""
    NOTHING = auto()
    """Redis has no such key."""
    OTHER_LENGTH = auto()
    """A value that does not fit its place. It was skipped."""
    OK = auto()
    """A line that is no error."""
    ERROR = auto()
    """A line that is an error."""


class Reply(NamedTuple):
    """A complete reply."""

    kind: Kind
    line: bytes = b""
    """The line of OK and ERROR, without its first byte."""
    value_bytes: int = 0
    """The length of a VALUE."""


class _Expected(NamedTuple):
    """A reply that is announced."""

    places: tuple[memoryview, ...]
    """Where a value goes, in order. Empty for a reply that is a line."""
    room_bytes: int
    """The length of all places together."""
    at_most: bool
    """Whether a shorter value is taken too."""
    exactly: bytes | None
    """The whole reply, where it can be no other."""
    start_bytes: int
    """How much of the reply may be received into the scratch. It ends before the large part of a value."""
    least_bytes: int
    """The reply is certain to have this many bytes."""
    line: bytes = b""
    """The first line of a value that fills the places."""

    def takes(self, length: int) -> bool:
        return bool(self.places) and (
            length == self.room_bytes or (self.at_most and length < self.room_bytes)
        )


class ReplyReader:
    """Reads replies in the order in which `expect` and `expect_exactly` announced them.

    The caller receives into `buffers()` from their beginning, calls `received` with the number of bytes, and
    goes on while any reply is `outstanding`. Both methods raise nothing but ProtocolError.
    """

    def __init__(self) -> None:
        self._scratch = bytearray(_SCRATCH_BYTES)
        self._view = memoryview(self._scratch)
        # The bytes of the scratch that are received and not read yet.
        self._start = self._end = 0
        self._expected: deque[_Expected] = deque()
        # The sum of `least_bytes` over all of `_expected`.
        self._certain_bytes = 0
        # What is still to be filled of the arriving value's places.
        self._places: deque[memoryview] = deque()
        # What is still to be skipped of a value that does not fit.
        self._skip_bytes = 0
        # The reply of a value whose line end is still missing.
        self._ending: Reply | None = None

    @property
    def outstanding(self) -> int:
        """How many replies are announced and not complete."""
        return len(self._expected) + (self._ending is not None)

    @property
    def in_value(self) -> bool:
        """Whether `buffers()` begins with a value's place. Then bytes for all buffers are certain to come."""
        return bool(self._places)

    @property
    def missing_bytes(self) -> int:
        """How many bytes of the arriving value are missing."""
        return sum(place.nbytes for place in self._places)

    def expect(self, *places: memoryview, at_most: bool = False) -> None:
        """Announce the next reply.

        places: writable bytes that a value fills one after the other; none where no value is expected.
        at_most: whether a shorter value is taken too. The places behind its end are left as they are.
        """
        room_bytes = 0
        for place in places:
            room_bytes += place.nbytes
        line = b"$%d\r\n" % room_bytes
        start_bytes = len(line) + places[0].nbytes if places else MAX_LINE_BYTES
        self._expected.append(
            _Expected(places, room_bytes, at_most, None, start_bytes, _LEAST_REPLY_BYTES, line)
        )
        self._certain_bytes += _LEAST_REPLY_BYTES

    def expect_exactly(self, reply: bytes) -> None:
        """Announce a reply that can be no other, such as a PING's. It is read and not returned.

        Any other reply is a ProtocolError. With this reply it is certain that its bytes follow the reply
        before it. The end of a value and the beginning of the next value can then be received together.
        Without it, the reply after the value might be the last, and as short as the reply for a missing key.
        Waiting for more of it would never end.

        reply: at most MAX_LINE_BYTES.
        """
        self._expected.append(_Expected((), 0, False, reply, len(reply), len(reply)))
        self._certain_bytes += len(reply)

    def buffers(self) -> list[memoryview]:
        """Where the next bytes go, one buffer after the other. Not empty while a reply is outstanding."""
        if self._places:
            # The scratch is empty: its bytes of the value have been moved into the value's places.
            following = min(self._start_bytes(), 2 + self._certain_bytes)
            return [*self._places, self._view[:following]]
        if self._skip_bytes:
            return [self._view[: min(self._skip_bytes, _SCRATCH_BYTES)]]
        if self._start:
            left = bytes(self._view[self._start : self._end])
            self._view[: len(left)] = left
            self._start, self._end = 0, len(left)
        return [self._view[self._end : max(self._end + 1, self._start_bytes())]]

    def received(self, count: int) -> list[Reply]:
        """Returns the replies that are complete with these bytes."""
        while self._places:
            place = self._places.popleft()
            if count < place.nbytes:
                self._places.appendleft(place[count:])
                return []
            count -= place.nbytes
            if not self._places:
                self._start = self._end = 0
        if self._skip_bytes:
            self._skip_bytes -= count
            return []
        self._end += count
        usual = self._take_usual()
        if usual is not None:
            return [usual]
        replies: list[Reply] = []
        while (reply := self._next()) is not None:
            replies.append(reply)
        return replies

    def _take_usual(self) -> Reply | None:
        """Read in one go what follows nearly every value.

        That is the value's line end, the reply that can be no other, and the next value's line and first
        place.
        Returns None where the scratch holds anything else. `_next` reads the same piece by piece, which takes
        longer.
        """
        if self._ending is None or self._start or len(self._expected) < 2:
            return None
        between, value = self._expected[0], self._expected[1]
        if between.exactly is None or not value.places:
            return None
        usual = b"\r\n" + between.exactly + value.line
        if self._end != len(usual) + value.places[0].nbytes or not self._scratch.startswith(usual):
            return None
        for expected in (between, value):
            self._expected.popleft()
            self._certain_bytes -= expected.least_bytes
        reply, self._ending = self._ending, Reply(Kind.VALUE, b"", value.room_bytes)
        self._start = len(usual)
        self._fill(value.places, value.room_bytes)
        return reply

    def _start_bytes(self) -> int:
        """What may be received into the scratch: up to the large part of the next value."""
        wanted = 0 if self._ending is None else 2
        for expected in self._expected:
            wanted += expected.start_bytes
            if expected.exactly is None:
                break
        return min(wanted, _SCRATCH_BYTES)

    def _next(self) -> Reply | None:
        """The next reply that is complete in the scratch. None: more bytes are needed."""
        while not self._places and not self._skip_bytes:
            if self._ending is not None:
                if not self._take_exactly(b"\r\n", "a value does not end where it should"):
                    return None
                reply, self._ending = self._ending, None
                return reply
            exactly = self._expected[0].exactly if self._expected else None
            if exactly is not None:
                if not self._take_exactly(exactly, "it is not the one reply that is possible"):
                    return None
                self._certain_bytes -= self._expected.popleft().least_bytes
                continue
            line = self._take_line()
            if line is None:
                return None
            complete = self._begin(line)
            if complete is not None:
                return complete
        return None

    def _take_exactly(self, wanted: bytes, fault: str) -> bool:
        """Whether all of `wanted` is in the scratch. Raises ProtocolError where other bytes are."""
        if self._scratch.startswith(wanted, self._start, self._end):
            self._start += len(wanted)
            return True
        seen = bytes(self._view[self._start : min(self._end, self._start + len(wanted))])
        if not wanted.startswith(seen):
            raise ProtocolError(f"{seen[:64]!r}: {fault}")
        return False

    def _take_line(self) -> bytes | None:
        if self._start == self._end:
            return None
        if not self._expected:
            raise ProtocolError(f"{bytes(self._view[self._start : self._end])[:16]!r} was not asked for")
        end = self._scratch.find(b"\r\n", self._start, min(self._end, self._start + MAX_LINE_BYTES))
        if end >= 0:
            line = bytes(self._view[self._start : end])
            self._start = end + 2
            return line
        if self._end - self._start >= MAX_LINE_BYTES:
            raise ProtocolError(f"a line of more than {MAX_LINE_BYTES} bytes")
        return None

    def _begin(self, line: bytes) -> Reply | None:
        """Read a reply's first line. Returns the reply when the line is all of it."""
        expected = self._expected.popleft()
        self._certain_bytes -= expected.least_bytes
        first, rest = line[:1], line[1:]
        if first in (b"+", b":"):
            return Reply(Kind.OK, rest)
        if first == b"-":
            return Reply(Kind.ERROR, rest)
        if line in (b"$-1", b"_"):
            return Reply(Kind.NOTHING)
        if first != b"$" or not rest.isdigit() or len(rest) > 10:
            raise ProtocolError(f"{line[:16]!r} is no reply to a GET or SET")
        length = int(rest)
        if expected.takes(length):
            self._ending = Reply(Kind.VALUE, b"", length)
            self._fill(expected.places, length)
            return None
        if length > MAX_SKIPPED_BYTES:
            raise ProtocolError(f"a value of {length} bytes")
        self._ending = Reply(Kind.OTHER_LENGTH)
        ready = min(length, self._end - self._start)
        self._start += ready
        self._skip_bytes = length - ready
        return None

    def _fill(self, places: tuple[memoryview, ...], length: int) -> None:
        """Move the scratch's bytes of a value into its places, and note where the rest goes."""
        for place in places:
            if place.nbytes > length:
                place = place[:length]
            wanted = place.nbytes
            length -= wanted
            ready = min(wanted, self._end - self._start)
            if ready:
                place[:ready] = self._view[self._start : self._start + ready]
                self._start += ready
            if ready < wanted:
                self._places.append(place[ready:] if ready else place)
