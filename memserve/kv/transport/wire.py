"""Values between Redis and memory, without a copy in Python and without the GIL for the bytes.

redis-py makes the connection (URL, TLS, AUTH, unix sockets); from then on its socket is ours.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import struct
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

from redis.connection import ConnectionPool

from memserve.kv.transport.resp import Kind, Reply, ReplyReader
from memserve.kv.values.envelope import Buffer, Verification

# A few values in flight keep the wire busy; more of them, or very large ones, only wait in buffers that then
# have to be copied again.
IN_FLIGHT_BYTES = 4 << 20
MAX_IN_FLIGHT = 4
# A PING with this follows every GET, and is the reply, too (see `ReplyReader.expect_exactly`): as long as a
# value's first line and head.
PADDING = b"$160\r\n%s\r\n" % (b"." * 160)
# How long nothing may come over a unix socket before its reader sleeps: about what waking the server takes.
POLL_S = 100e-6
# A call that does not wait for Redis and takes longer waits for the GIL, or for a processor.
SLOW_CALL_S = 1e-3
# A value that is larger is checked in pieces while it comes: as a whole it no longer is in the processor's
# caches when it is there.
_MOST_UNCHECKED_BYTES = 2 << 20
_PIECE_BYTES = 1 << 20
# Of a large value over TCP so much must be there to wake its reader, while more than that is certain to come:
# waking it takes the time of whoever sends, on the same machine the server.
_WAKE_BYTES = 128 << 10
# Errors of a server that is not, or not now, the one to ask.
_MISPLACED = (b"MOVED ", b"ASK ", b"CLUSTERDOWN", b"TRYAGAIN", b"MASTERDOWN", b"READONLY")


class Place(NamedTuple):
    """Where a value of known length goes: first its head, then its body.

    at_most: a shorter one is taken too. check: of a value of exactly this length; if that is large, it is
    told which bytes of the body are there while others still come. The last bytes are left to whoever asks it
    for its verdict.
    """

    name: bytes
    head: memoryview
    body: memoryview
    at_most: bool = False
    check: Verification | None = None


class Item(NamedTuple):
    """A value to be stored: its head, then its body."""

    name: bytes
    head: Buffer
    body: Buffer


class Wire:
    """One connection for large values; one thread at a time. After any error it must be closed.

    Every method raises OSError (a timeout is a TimeoutError), redis-py's RedisError when connecting fails, or
    resp.ProtocolError.
    """

    def __init__(
        self,
        connection: Any,
        io_timeout_s: float,
        *,
        poll_s: float = POLL_S,
        slow_call_s: float = SLOW_CALL_S,
    ) -> None:
        """For `connect`. poll_s: how long nothing may come over a unix socket before its reader sleeps.

        slow_call_s: how long a call may take that does not wait for Redis. Polling and checking in pieces
        make more calls, and each gives the GIL away: after a slower one an exchange goes on without them.
        """
        self._connection = connection
        self._socket: socket.socket = connection._sock
        self._reader = ReplyReader()
        self._misplaced = False
        self._plain = not isinstance(self._socket, ssl.SSLSocket)
        self._poll_s, self._slow_call_s = poll_s, slow_call_s
        self._undisturbed = False
        self._near = self._socket.family is socket.AF_UNIX
        self._wake_bytes = 1
        if not self._near and _may_receive_ahead():
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, IN_FLIGHT_BYTES)
        self._socket.settimeout(None if self._plain else io_timeout_s)
        if self._plain:
            # The kernel keeps the time: a blocking call moves megabytes at once, where a socket with a
            # timeout polls before each piece.
            seconds = int(io_timeout_s)
            timeval = struct.pack("ll", seconds, int((io_timeout_s - seconds) * 1e6))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)

    @classmethod
    def connect(cls, pool: ConnectionPool, io_timeout_s: float) -> Self:
        """pool: says where and how; it must speak RESP2 and not decode."""
        connection = pool.connection_class(**pool.connection_kwargs)
        connection.connect()
        return cls(connection, io_timeout_s)

    @property
    def misplaced(self) -> bool:
        """Whether a reply said that another server is to be asked: slots have moved, or the master is one no
        longer.
        """
        return self._misplaced

    def is_alive(self) -> bool:
        """Whether an idle connection is as it was left: open, and nothing has come."""
        waiting = select.poll()
        waiting.register(self._socket, select.POLLIN)
        return not waiting.poll(0)

    def close(self) -> None:
        self._connection.disconnect()

    def get(self, places: Sequence[Place], *, ttl_s: int, deadline_s: float) -> Iterator[Reply]:
        """Fetch values into their places and slide their time to live.

        places: they may share memory with the `in_flight(length of the longest body)`th after them, which is
        not asked for before the iterator has been asked for the reply after theirs. deadline_s: on the
        monotonic clock; what has not come by then is a TimeoutError. Yields VALUE, NOTHING, OTHER_LENGTH or
        ERROR for each place as it comes; the place is of no meaning but for VALUE. An iterator that is not
        run to its end leaves the connection of no use.
        """
        if not places:
            return
        commands = [get_command(place.name, ttl_s=ttl_s) for place in places]
        ahead = in_flight(max(place.body.nbytes for place in places))
        self._undisturbed = self._plain
        sent = received = 0
        while received < len(places):
            until = min(len(places), received + ahead)
            if sent < until:
                for place in places[sent:until]:
                    self._reader.expect(place.head, place.body, at_most=place.at_most)
                    self._reader.expect_exactly(PADDING)
                began_s = time.monotonic()
                self._send(b"".join(commands[sent:until]))
                self._note_call(time.monotonic() - began_s)
                sent = until
            for reply in self._replies(deadline_s, places[received]):
                received += 1
                yield reply
        while self._reader.outstanding:  # the last padding
            self._replies(deadline_s)

    def set(self, items: Sequence[Item], *, ttl_s: int, deadline_s: float) -> list[bool]:
        """Store values. Returns whether Redis took each; deadline_s as in `get`."""
        if not items:
            return []
        self._undisturbed = False  # nothing waits for a store
        expiry = b"\r\n$2\r\nEX\r\n$%d\r\n%d\r\n" % (len(str(ttl_s)), ttl_s)
        ahead = in_flight(memoryview(items[0].body).nbytes)
        stored: list[bool] = []
        for item in items:
            self._reader.expect()
            length = memoryview(item.head).nbytes + memoryview(item.body).nbytes
            self._send(
                b"*5\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n" % (len(item.name), item.name, length),
                item.head,
                item.body,
                expiry,
            )
            while self._reader.outstanding >= ahead:
                stored += [reply.kind is Kind.OK for reply in self._replies(deadline_s)]
        while self._reader.outstanding:
            stored += [reply.kind is Kind.OK for reply in self._replies(deadline_s)]
        return stored

    def _replies(self, deadline_s: float, place: Place | None = None) -> list[Reply]:
        """Receive once. Returns what that completed, perhaps nothing. place: of the value that is next."""
        if time.monotonic() > deadline_s:
            raise TimeoutError("Redis took longer than the whole exchange may take")
        check = (
            place.check
            if place is not None and self._undisturbed and place.body.nbytes > _MOST_UNCHECKED_BYTES
            else None
        )
        buffers = self._room(in_pieces=check is not None)
        try:
            count = self._receive(buffers, deadline_s)
        except BlockingIOError as error:
            raise TimeoutError("Redis did not answer in time") from error
        if count == 0:
            raise ConnectionResetError("Redis closed the connection")
        replies = self._reader.received(count)
        if place is not None and check is not None and not replies and self._reader.in_value:
            check.came(place.body.nbytes - self._reader.missing_bytes)
        for reply in replies:
            if reply.kind is Kind.ERROR and reply.line.startswith(_MISPLACED):
                self._misplaced = True
        return replies

    def _room(self, *, in_pieces: bool) -> list[memoryview]:
        """Where the next bytes go; of a large value's places perhaps only the next part."""
        buffers = self._reader.buffers()
        wake_bytes = 1
        if self._undisturbed and self._reader.in_value:
            if not self._near and buffers[0].nbytes > 4 * _WAKE_BYTES:
                wake_bytes = _WAKE_BYTES
                buffers = [buffers[0][:-_WAKE_BYTES]]
            if in_pieces and buffers[0].nbytes > _PIECE_BYTES:
                buffers = [buffers[0][:_PIECE_BYTES]]
        if wake_bytes != self._wake_bytes:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wake_bytes)
            self._wake_bytes = wake_bytes
        return buffers

    def _receive(self, buffers: Sequence[memoryview], deadline_s: float) -> int:
        """Returns how many bytes came; none when Redis has closed the connection."""
        if not self._plain:
            return self._socket.recv_into(buffers[0])
        # What belongs to a value comes whole or not at all; a line may be shorter than what there is room
        # for.
        whole = self._reader.in_value
        count = self._poll(buffers, deadline_s, whole=whole) if self._near and self._undisturbed else 0
        if count == 0:
            count, *_ = self._socket.recvmsg_into(buffers, 0, socket.MSG_WAITALL if whole else 0)
        return count

    def _poll(self, buffers: Sequence[memoryview], deadline_s: float, *, whole: bool) -> int:
        """Receive without sleeping, until the buffers are full, nothing has come for a while, or a call was
        slow. Returns how many bytes.

        A unix socket holds 0.2 MB: a reader that sleeps whenever it is empty, and a server that sleeps
        whenever it is full, wake each other several times in every value, and that takes as long as the
        bytes. whole: not only what is there at once.
        """
        room = list(buffers)
        received = 0
        now_s = time.monotonic()
        until_s = min(now_s + self._poll_s, deadline_s)
        while True:
            began_s = now_s
            try:
                count, *_ = self._socket.recvmsg_into(room, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                count = 0
                os.sched_yield()  # the server may be on this processor
            now_s = time.monotonic()
            self._note_call(now_s - began_s)
            received += count
            if not self._undisturbed or now_s > until_s or (count and not whole):
                return received
            if count:
                while room and count >= room[0].nbytes:
                    count -= room.pop(0).nbytes
                if not room:
                    return received
                room[0] = room[0][count:]
                until_s = min(now_s + self._poll_s, deadline_s)

    def _note_call(self, seconds: float) -> None:
        """Of a call that does not wait for Redis."""
        if seconds > self._slow_call_s:
            self._undisturbed = False

    def _send(self, *buffers: Buffer) -> None:
        if not self._plain:
            for buffer in buffers:
                self._socket.sendall(buffer)
            return
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        while views:
            try:
                sent = self._socket.sendmsg(views)
            except BlockingIOError as error:
                raise TimeoutError("Redis did not take what was sent in time") from error
            while views and sent >= views[0].nbytes:
                sent -= views.pop(0).nbytes
            if views:
                views[0] = views[0][sent:]


def get_command(name: bytes, *, ttl_s: int) -> bytes:
    """What asks for a value and slides its time to live. PADDING follows the value."""
    expiry = b"$2\r\nEX\r\n$%d\r\n%d\r\n" % (len(str(ttl_s)), ttl_s)
    return b"*4\r\n$5\r\nGETEX\r\n$%d\r\n%s\r\n%s*2\r\n$4\r\nPING\r\n%s" % (len(name), name, expiry, PADDING)


def _may_receive_ahead() -> bool:
    """Whether this host lets a TCP socket hold all that is in flight.

    Left to itself the kernel settles for a smaller buffer, differently for each connection, and values of
    0.25 MiB then take twice the time. To ask for more than net.core.rmem_max allows would be worse: it fixes
    the buffer at that.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, IN_FLIGHT_BYTES)
        return (
            probe.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= 2 * IN_FLIGHT_BYTES
        )  # Linux doubles what is asked for


def in_flight(value_bytes: int) -> int:
    """How many values of this length may be on their way at once."""
    return max(2, min(MAX_IN_FLIGHT, IN_FLIGHT_BYTES // max(1, value_bytes)))
