"""Values between Redis and memory, without a copy in Python and without the GIL for the bytes.

redis-py makes the connection (URL, TLS, AUTH, unix sockets). From then on its socket is ours.

How a fetch works:

1. Up to `in_flight` GETs are sent at once. A PING follows each GET.
2. The reader knows where each value belongs before the value arrives, so that the kernel writes into that
   place.
3. The PING's reply has a known length. With it, more bytes are certain to come after a value's end, and the
   end of one value and the beginning of the next are received in one call.
4. Over a unix socket the thread polls for a moment before it sleeps. Over TCP the kernel wakes it once per
   128 KiB.
5. A large value's checksum is taken in pieces while the rest of the value arrives.
6. Steps 4 and 5 take more calls, and each call gives the GIL away. After one slow call the exchange goes on
   without them.
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

# A few values in flight keep the wire busy. More values, or very large ones, only wait in the kernel's
# buffers and have to be copied once more.
IN_FLIGHT_BYTES = 4 << 20
MAX_IN_FLIGHT = 4
# A PING with this text follows every GET, and Redis replies with the same text (see
# `ReplyReader.expect_exactly`). It is as long as a value's first line and head.
PADDING = b"$160\r\n%s\r\n" % (b"." * 160)
# How long a reader polls a silent unix socket before it sleeps. Waking the server takes about as long.
POLL_S = 100e-6
# A call that does not wait for Redis and takes longer than this has waited for the GIL or for a processor.
SLOW_CALL_S = 1e-3
# A larger value is checked in pieces while it arrives. When a large value is complete, its beginning has left
# the processor's caches.
_MOST_UNCHECKED_BYTES = 2 << 20
_PIECE_BYTES = 1 << 20
# SO_RCVLOWAT while a large value arrives over TCP: the kernel wakes us once per 128 KiB, not once per
# segment. Each wake-up costs the sender time, and on one machine the sender is Redis. Set only while more
# than this is still to come; else we would wait for ever.
_WAKE_BYTES = 128 << 10
# A server that replies with one of these errors cannot serve the key, or not now. Another server has to be
# asked.
_MISPLACED = (b"MOVED ", b"ASK ", b"CLUSTERDOWN", b"TRYAGAIN", b"MASTERDOWN", b"READONLY")


class Place(NamedTuple):
    """Where a value of known length goes: first its head, then its body."""

    name: bytes
    head: memoryview
    body: memoryview
    at_most: bool = False
    """Whether a shorter value is taken too."""
    check: Verification | None = None
    """For a value of exactly this length. A large value is checked while it arrives. The caller asks for the
    verdict, and with it for the last bytes' check."""


class Item(NamedTuple):
    """A value to be stored: its head, then its body."""

    name: bytes
    head: Buffer
    body: Buffer


class Wire:
    """One connection for large values, for one thread at a time. After any error it must be closed.

    Every method raises OSError (a timeout is a TimeoutError), resp.ProtocolError, or redis-py's RedisError
    when connecting fails.
    """

    def __init__(
        self,
        connection: Any,
        io_timeout_s: float,
        *,
        poll_s: float = POLL_S,
        slow_call_s: float = SLOW_CALL_S,
    ) -> None:
        """For `connect`.

        connection: redis-py's, connected.
        poll_s: how long the reader polls a silent unix socket before it sleeps.
        slow_call_s: how long a call that does not wait for Redis may take. After a slower call an exchange
        goes on without polling and without checking in pieces.
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
            # The kernel keeps the time. A blocking call then moves megabytes at once. Python polls before
            # each piece on a socket that has a timeout of Python's.
            seconds = int(io_timeout_s)
            timeval = struct.pack("ll", seconds, int((io_timeout_s - seconds) * 1e6))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)

    @classmethod
    def connect(cls, pool: ConnectionPool, io_timeout_s: float) -> Self:
        """pool: says where and how to connect. It must speak RESP2 and not decode."""
        connection = pool.connection_class(**pool.connection_kwargs)
        connection.connect()
        return cls(connection, io_timeout_s)

    @property
    def misplaced(self) -> bool:
        """Whether a reply said that another server has to be asked.

        Slots have moved, or the master has become a replica.
        """
        return self._misplaced

    def is_alive(self) -> bool:
        """Whether an idle connection is still open, and silent."""
        waiting = select.poll()
        waiting.register(self._socket, select.POLLIN)
        return not waiting.poll(0)

    def close(self) -> None:
        self._connection.disconnect()

    def get(self, places: Sequence[Place], *, ttl_s: int, deadline_s: float) -> Iterator[Reply]:
        """Fetch values into their places and slide their time to live.

        An iterator that is not run to its end leaves the connection unusable.

        places: a place may share memory with the `in_flight(length of the longest body)`th place after it.
        The value for that later place is not asked for before the iterator is asked for the reply after this
        place's reply.
        deadline_s: on the monotonic clock. A reply that has not arrived by then is a TimeoutError. Yields
        VALUE, NOTHING, OTHER_LENGTH or ERROR for each place, in order. Only after VALUE do the place's bytes
        mean anything.
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
        """Store values. Returns for each whether Redis took it.

        deadline_s: as in `get`.
        """
        if not items:
            return []
        self._undisturbed = False  # no request waits for a store
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
        """Receive once. Returns the replies that are complete then, perhaps none.

        place: of the next value.
        """
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
        """Where the next bytes go. For a large value perhaps only the next part of its place."""
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
        """Returns how many bytes arrived; 0 when Redis has closed the connection."""
        if not self._plain:
            return self._socket.recv_into(buffers[0])
        # All bytes of a value's place are certain to arrive, so that the call may wait for all of them. A
        # line may be shorter than the buffer.
        whole = self._reader.in_value
        count = self._poll(buffers, deadline_s, whole=whole) if self._near and self._undisturbed else 0
        if count == 0:
            count, *_ = self._socket.recvmsg_into(buffers, 0, socket.MSG_WAITALL if whole else 0)
        return count

    def _poll(self, buffers: Sequence[memoryview], deadline_s: float, *, whole: bool) -> int:
        """Receive without sleeping. Returns how many bytes arrived.

        A unix socket holds 0.2 MB. A reader that sleeps whenever the socket is empty and a server that sleeps
        whenever it is full would wake each other several times in every value. That takes as long as the
        bytes do.

        It ends when the buffers are full, when nothing has arrived for a while, or after a slow call.

        whole: whether to go on after the first bytes.
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
        """Note how long a call took that does not wait for Redis."""
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
    """The command that fetches a value and slides its time to live. The reply PADDING follows the value."""
    expiry = b"$2\r\nEX\r\n$%d\r\n%d\r\n" % (len(str(ttl_s)), ttl_s)
    return b"*4\r\n$5\r\nGETEX\r\n$%d\r\n%s\r\n%s*2\r\n$4\r\nPING\r\n%s" % (len(name), name, expiry, PADDING)


def _may_receive_ahead() -> bool:
    """Whether this host lets a TCP socket hold all that is in flight.

    By itself the kernel chooses a smaller buffer, a different one for each connection. Values of 0.25 MiB
    then take twice the time. Asking for more than net.core.rmem_max allows would be worse: it fixes the
    buffer at that size.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, IN_FLIGHT_BYTES)
        # Linux doubles the size that is asked for.
        return probe.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= 2 * IN_FLIGHT_BYTES


def in_flight(value_bytes: int) -> int:
    """How many values of this length may be asked for at once."""
    return max(2, min(MAX_IN_FLIGHT, IN_FLIGHT_BYTES // max(1, value_bytes)))
