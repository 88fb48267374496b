"""The replies of Redis to GET and SET, read without I/O: a value goes straight to where it is wanted, and is never copied in Python.

Source: the RESP2 section of https://redis.io/docs/latest/develop/reference/protocol-spec/
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

# Lines are short: a type, a length, or an error's text.
MAX_LINE_BYTES: Final = 1024
# A value that is larger than this and not of the expected length is not worth reading to its end.
MAX_SKIPPED_BYTES: Final = 64 << 20
_SCRATCH_BYTES: Final = 16 << 10


class ProtocolError(Exception):
    """What came is not RESP2, or was not asked for. The connection is of no more use."""


class Kind(Enum):
    """VALUE: it is in its place. NOTHING: there is no such key. OTHER_LENGTH: a value that does not fit, thrown away. OK, ERROR: a line."""

    VALUE = auto()
    NOTHING = auto()
    OTHER_LENGTH = auto()
    OK = auto()
    ERROR = auto()


@dataclass(frozen=True, slots=True)
class Reply:
    """line: of OK and ERROR, without its first byte. value_bytes: length of a VALUE."""

    kind: Kind
    line: bytes = b""
    value_bytes: int = 0


@dataclass(slots=True)
class _Expected:
    """Where a value goes, in order; nothing for a reply that is a line. room_bytes: of the places together."""

    places: tuple[memoryview, ...]
    room_bytes: int
    at_most: bool

    def takes(self, length: int) -> bool:
        return bool(self.places) and (length == self.room_bytes or (self.at_most and length < self.room_bytes))


class ReplyReader:
    """Replies in the order in which they were announced by `expect`.

    The caller puts at most `len(buffer())` bytes at the beginning of `buffer()`, says to `received` how many, and goes on while any reply
    is `outstanding`. Neither raises anything but ProtocolError.
    """

    def __init__(self) -> None:
        self._scratch = memoryview(bytearray(_SCRATCH_BYTES))
        self._start = self._end = 0  # of what is in the scratch and not yet understood
        self._expected: deque[_Expected] = deque()
        self._places: deque[memoryview] = deque()  # what is left of the destination of the value that is coming in
        self._skip_bytes = 0
        self._ending: Reply | None = None  # of a value whose bytes are all there but for the line end

    @property
    def outstanding(self) -> int:
        """Replies that are announced and not complete."""
        return len(self._expected) + (self._ending is not None)

    @property
    def in_value(self) -> bool:
        """Whether `buffer()` is the destination of a value, all of which is certain to come."""
        return bool(self._places)

    def expect(self, *places: memoryview, at_most: bool = False) -> None:
        """Announce the next reply. places: writable bytes that a value fills one after the other; none where a value is not expected.

        at_most: a shorter value is taken too. What is behind its end in the places is left as it is.
        """
        self._expected.append(_Expected(places, sum(place.nbytes for place in places), at_most))

    def buffer(self) -> memoryview:
        """Where the next bytes go; not empty while a reply is outstanding."""
        if self._places:
            return self._places[0]
        if self._skip_bytes:
            return self._scratch[: min(self._skip_bytes, _SCRATCH_BYTES)]
        if self._start:
            left = bytes(self._scratch[self._start : self._end])
            self._scratch[: len(left)] = left
            self._start, self._end = 0, len(left)
        return self._scratch[self._end : max(self._end + 1, self._line_bytes())]

    def received(self, count: int) -> list[Reply]:
        """Returns the replies that these bytes completed."""
        if self._places:
            place = self._places.popleft()
            if count < place.nbytes:
                self._places.appendleft(place[count:])
            return []
        if self._skip_bytes:
            self._skip_bytes -= count
            return []
        self._end += count
        replies: list[Reply] = []
        while (reply := self._next()) is not None:
            replies.append(reply)
        return replies

    def _line_bytes(self) -> int:
        """What may be read together without reading into the large part of a value: line end, line, first place."""
        wanted = 0 if self._ending is None else 2
        if self._expected:
            following = self._expected[0]
            first_line_bytes = len(b"$%d\r\n" % following.room_bytes)
            wanted += first_line_bytes + following.places[0].nbytes if following.places else MAX_LINE_BYTES
        return min(wanted, _SCRATCH_BYTES)

    def _next(self) -> Reply | None:
        """The next reply that the scratch completes; None when more bytes are needed."""
        while not self._places and not self._skip_bytes:
            if self._ending is not None:
                if self._end - self._start < 2:
                    return None
                if self._take(2) != b"\r\n":
                    raise ProtocolError("a value does not end where it should")
                reply, self._ending = self._ending, None
                return reply
            line = self._take_line()
            if line is None:
                return None
            complete = self._begin(line)
            if complete is not None:
                return complete
        return None

    def _take_line(self) -> bytes | None:
        seen = bytes(self._scratch[self._start : min(self._end, self._start + MAX_LINE_BYTES)])
        if seen and not self._expected:
            raise ProtocolError(f"{seen[:16]!r} was not asked for")
        length = seen.find(b"\r\n")
        if length >= 0:
            return self._take(length + 2)[:-2]
        if len(seen) == MAX_LINE_BYTES:
            raise ProtocolError(f"a line of more than {MAX_LINE_BYTES} bytes")
        return None

    def _begin(self, line: bytes) -> Reply | None:
        """Understand a reply's first line. Returns the reply when it is all of it."""
        expected = self._expected.popleft()
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
            self._ending = Reply(Kind.VALUE, value_bytes=length)
            self._fill(expected.places, length)
            return None
        if length > MAX_SKIPPED_BYTES:
            raise ProtocolError(f"a value of {length} bytes")
        self._ending = Reply(Kind.OTHER_LENGTH)
        ready = self._take(min(length, self._end - self._start))
        self._skip_bytes = length - len(ready)
        return None

    def _fill(self, places: tuple[memoryview, ...], length: int) -> None:
        """Put what the scratch has of a value into its places, and leave where the rest goes."""
        for place in places:
            if place.nbytes > length:
                place = place[:length]
            length -= place.nbytes
            ready = self._take(min(place.nbytes, self._end - self._start))
            place[: len(ready)] = ready
            if len(ready) < place.nbytes:
                self._places.append(place[len(ready) :] if ready else place)

    def _take(self, count: int) -> bytes:
        taken = bytes(self._scratch[self._start : self._start + count])
        self._start += len(taken)
        return taken
