"""The replies of Redis to GET, SET and PING, read without I/O: a value goes straight to where it is wanted,
never copied in Python.

Source: the RESP2 section of https://redis.io/docs/latest/develop/reference/protocol-spec/
"""

from __future__ import annotations

from collections import deque
from enum import Enum, auto
from typing import Final, NamedTuple

# Lines are short: a type, a length, or an error's text.
MAX_LINE_BYTES: Final = 1024
# A value that is larger than this and not of the expected length is not worth reading to its end.
MAX_SKIPPED_BYTES: Final = 64 << 20
_SCRATCH_BYTES: Final = 16 << 10
# No reply is shorter than a type and a line end, as in an error without a text.
_LEAST_REPLY_BYTES: Final = 3


class ProtocolError(Exception):
    """What came is not RESP2, or was not asked for. The connection is of no more use."""


class Kind(Enum):
    """VALUE: it is in its place. NOTHING: there is no such key. OTHER_LENGTH: a value that does not fit,
    thrown away. OK, ERROR: a line.
    """

    VALUE = auto()
    NOTHING = auto()
    OTHER_LENGTH = auto()
    OK = auto()
    ERROR = auto()


class Reply(NamedTuple):
    """line: of OK and ERROR, without its first byte. value_bytes: length of a VALUE."""

    kind: Kind
    line: bytes = b""
    value_bytes: int = 0


class _Expected(NamedTuple):
    """Where a value goes, in order; nothing for a reply that is a line.

    room_bytes: of the places together. exactly: all of the reply, where it can be no other. start_bytes: what
    may be read together with what comes before, without reading into the large part of a value. least_bytes:
    it is certain to have so many. line: the first, of a value that fills the places.
    """

    places: tuple[memoryview, ...]
    room_bytes: int
    at_most: bool
    exactly: bytes | None
    start_bytes: int
    least_bytes: int
    line: bytes = b""

    def takes(self, length: int) -> bool:
        return bool(self.places) and (
            length == self.room_bytes or (self.at_most and length < self.room_bytes)
        )


class ReplyReader:
    """Replies in the order in which they were announced by `expect` and `expect_exactly`.

    The caller fills `buffers()` from the beginning with what has come, says to `received` how many bytes, and
    goes on while any reply is `outstanding`. Neither raises anything but ProtocolError.
    """

    def __init__(self) -> None:
        self._scratch = bytearray(_SCRATCH_BYTES)
        self._view = memoryview(self._scratch)
        self._start = self._end = 0  # of what is in the scratch and not yet understood
        self._expected: deque[_Expected] = deque()
        self._certain_bytes = 0  # of what is expected, together
        self._places: deque[memoryview] = (
            deque()
        )  # what is left of the destination of the value that is coming in
        self._skip_bytes = 0
        self._ending: Reply | None = None  # of a value whose bytes are all there but for the line end

    @property
    def outstanding(self) -> int:
        """Replies that are announced and not complete."""
        return len(self._expected) + (self._ending is not None)

    @property
    def in_value(self) -> bool:
        """Whether `buffers()` begins with the destination of a value. Then all of them are certain to be
        filled.
        """
        return bool(self._places)

    @property
    def missing_bytes(self) -> int:
        """What is to come of the value that is coming in."""
        return sum(place.nbytes for place in self._places)

    def expect(self, *places: memoryview, at_most: bool = False) -> None:
        """Announce the next reply. places: writable bytes that a value fills one after the other; none where
        a value is not expected.

        at_most: a shorter value is taken too. What is behind its end in the places is left as it is.
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
        """Announce a reply that can be no other, such as a PING's. It is read and not returned; another one
        is a ProtocolError.

        It makes certain that so many bytes follow the reply before it. The end of a value and the beginning
        of the reply behind it can then be received together: without it that reply might be the last, and as
        short as that of a missing value, and waiting for more of it would never end. reply: at most
        MAX_LINE_BYTES.
        """
        self._expected.append(_Expected((), 0, False, reply, len(reply), len(reply)))
        self._certain_bytes += len(reply)

    def buffers(self) -> list[memoryview]:
        """Where the next bytes go, one after the other; not empty while a reply is outstanding."""
        if self._places:
            # The scratch is empty: what it had of the value is in these places.
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
        """Returns the replies that these bytes completed."""
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
        """In one go what follows nearly every value: its line end, what is to follow exactly, and the next
        value's line and first place.

        None where that is not all that there is; `_next` comes to the same piece by piece, and takes longer.
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
        """What may be read together: a line end, and what follows up to the large part of the next value."""
        wanted = 0 if self._ending is None else 2
        for expected in self._expected:
            wanted += expected.start_bytes
            if expected.exactly is None:
                break
        return min(wanted, _SCRATCH_BYTES)

    def _next(self) -> Reply | None:
        """The next reply that the scratch completes; None when more bytes are needed."""
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
        """Whether all of it is there. Raises ProtocolError where something else is."""
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
        """Understand a reply's first line. Returns the reply when it is all of it."""
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
        """Put what the scratch has of a value into its places, and leave where the rest goes."""
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
