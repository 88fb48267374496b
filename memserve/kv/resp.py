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
    """VALUE: it is in its place. NOTHING: there is no such key. OTHER_LENGTH: a value of another length, thrown away. OK, ERROR: a line."""

    VALUE = auto()
    NOTHING = auto()
    OTHER_LENGTH = auto()
    OK = auto()
    ERROR = auto()


@dataclass(frozen=True, slots=True)
class Reply:
    """line: of OK and ERROR, without its first byte."""

    kind: Kind
    line: bytes = b""


@dataclass(slots=True)
class _Expected:
    """Where a value goes, in order; nothing for a reply that is a line."""

    places: tuple[memoryview, ...]
    first_line: bytes


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
        self._ending: Kind | None = None  # of a value whose bytes are all there but for the line end

    @property
    def outstanding(self) -> int:
        """Replies that are announced and not complete."""
        return len(self._expected) + (self._ending is not None)

    @property
    def in_value(self) -> bool:
        """Whether `buffer()` is the destination of a value, all of which is certain to come."""
        return bool(self._places)

    def expect(self, *places: memoryview) -> None:
        """Announce the next reply. places: writable bytes that a value fills one after the other; none where a value is not expected."""
        length = sum(place.nbytes for place in places)
        self._expected.append(_Expected(places, b"$%d\r\n" % length if places else b""))

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
            wanted += len(following.first_line) + following.places[0].nbytes if following.places else MAX_LINE_BYTES
        return min(wanted, _SCRATCH_BYTES)

    def _next(self) -> Reply | None:
        """The next reply that the scratch completes; None when more bytes are needed."""
        while not self._places and not self._skip_bytes:
            if self._ending is not None:
                if self._end - self._start < 2:
                    return None
                if self._take(2) != b"\r\n":
                    raise ProtocolError("a value does not end where it should")
                kind, self._ending = self._ending, None
                return Reply(kind)
            line = self._take_line()
            if line is None:
                return None
            reply = self._begin(line)
            if reply is not None:
                return reply
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
        if expected.places and line + b"\r\n" == expected.first_line:
            self._ending = Kind.VALUE
            self._places.extend(expected.places)
            while self._places and self._start < self._end:
                place = self._places.popleft()
                ready = self._take(min(place.nbytes, self._end - self._start))
                place[: len(ready)] = ready
                if len(ready) < place.nbytes:
                    self._places.appendleft(place[len(ready) :])
            return None
        length = int(rest)
        if length > MAX_SKIPPED_BYTES:
            raise ProtocolError(f"a value of {length} bytes")
        self._ending = Kind.OTHER_LENGTH
        ready = self._take(min(length, self._end - self._start))
        self._skip_bytes = length - len(ready)
        return None

    def _take(self, count: int) -> bytes:
        taken = bytes(self._scratch[self._start : self._start + count])
        self._start += len(taken)
        return taken
