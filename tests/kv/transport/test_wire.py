"""Values over a real Redis: in place, in order, within their time."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from redis.connection import ConnectionPool

from memserve.kv.transport.resp import Kind
from memserve.kv.transport.wire import IN_FLIGHT_BYTES, MAX_IN_FLIGHT, PADDING, Item, Place, Wire, in_flight
from memserve.kv.values.envelope import Refusal, Verification, encode_header
from tests.kv.redis_server import RedisServer

HEAD_BYTES = 120


def pool(server: RedisServer) -> ConnectionPool:
    return ConnectionPool.from_url(server.url, protocol=2)


@pytest.fixture
def wire(own_redis_server: RedisServer) -> Iterator[Wire]:
    wire = Wire.connect(pool(own_redis_server), io_timeout_s=2.0)
    yield wire
    wire.close()


@pytest.fixture
def tcp_redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path, tcp=True)
    server.start()
    yield server
    server.stop()


def connected(server: RedisServer, **limits: float) -> Wire:
    connection = pool(server).make_connection()
    connection.connect()
    return Wire(connection, io_timeout_s=2.0, **limits)


def soon() -> float:
    return time.monotonic() + 10


def place(name: str, body_bytes: int, *, at_most: bool = False) -> Place:
    return Place(name.encode(), memoryview(bytearray(HEAD_BYTES)), memoryview(bytearray(body_bytes)), at_most)


class Telling(Verification):
    """Keeps every length that the check hears of."""

    def __init__(self, lengths: list[int], payload: memoryview, *, namespace: bytes, key: bytes) -> None:
        super().__init__(payload, namespace=namespace, key=key)
        self.lengths = lengths

    def came(self, payload_bytes: int) -> None:
        self.lengths.append(payload_bytes)
        super().came(payload_bytes)


def kinds(wire: Wire, places: list[Place], ttl_s: int = 10) -> list[Kind]:
    return [reply.kind for reply in wire.get(places, ttl_s=ttl_s, deadline_s=soon())]


@pytest.mark.parametrize("body_bytes", [1, 1000, 256 << 10, 3 << 20])
def test_what_is_stored_is_fetched_byte_for_byte(
    wire: Wire, own_redis_server: RedisServer, body_bytes: int
) -> None:
    items = [Item(b"key-%d" % number, os.urandom(HEAD_BYTES), os.urandom(body_bytes)) for number in range(7)]
    assert wire.set(items, ttl_s=100, deadline_s=soon()) == [True] * 7
    places = [place(f"key-{number}", body_bytes) for number in range(7)]
    assert kinds(wire, places, ttl_s=1000) == [Kind.VALUE] * 7
    for item, got in zip(items, places, strict=True):
        assert (bytes(got.head), bytes(got.body)) == (item.head, item.body)
    assert 990 < own_redis_server.client.ttl("key-0") <= 1000


def test_misses_and_values_of_another_length_lie_between_good_ones(
    wire: Wire, own_redis_server: RedisServer
) -> None:
    redis = own_redis_server.client
    good = os.urandom(HEAD_BYTES + 5000)
    for name, value in (
        ("a", good),
        ("short", b"x"),
        ("empty", b""),
        ("long", os.urandom(1 << 20)),
        ("z", good),
    ):
        redis.set(name, value)
    redis.lpush("list", "x")
    places = [place(name, 5000) for name in ("a", "gone", "short", "empty", "long", "list", "z")]
    other = Kind.OTHER_LENGTH
    assert kinds(wire, places) == [Kind.VALUE, Kind.NOTHING, other, other, other, Kind.ERROR, Kind.VALUE]
    assert bytes(places[-1].head) + bytes(places[-1].body) == good


def test_of_values_of_at_most_a_length_the_longer_are_thrown_away_and_the_connection_lives_on(
    wire: Wire,
) -> None:
    lengths = [0, 1, 4999, 5000, 5001, 1 << 20, 77]
    items = [Item(b"key-%d" % length, os.urandom(HEAD_BYTES), os.urandom(length)) for length in lengths]
    assert all(wire.set(items, ttl_s=100, deadline_s=soon()))
    places = [place(f"key-{length}", 5000, at_most=True) for length in lengths]
    replies = list(wire.get(places, ttl_s=10, deadline_s=soon()))
    for item, length, got, reply in zip(items, lengths, places, replies, strict=True):
        assert reply.kind is (Kind.VALUE if length <= 5000 else Kind.OTHER_LENGTH)
        if length <= 5000:
            assert reply.value_bytes == HEAD_BYTES + length
            assert (bytes(got.head), bytes(got.body[:length])) == (item.head, item.body)


@pytest.mark.parametrize("damaged_byte", [None, 0, (5 << 20) - 1])
@pytest.mark.parametrize("undisturbed", [True, False])
@pytest.mark.parametrize("server", ["own_redis_server", "tcp_redis_server"])
def test_large_values_are_checked_while_they_come(
    request: pytest.FixtureRequest, server: str, undisturbed: bool, damaged_byte: int | None
) -> None:
    """Between them one is missing and one has another length; the places of every second one are the same."""
    redis_server = request.getfixturevalue(server)
    client, namespace, body_bytes = redis_server.client, bytes(32), 5 << 20
    names = ["0", "1", "gone", "2", "other", "3", "4"]
    for name in names:
        body = os.urandom(body_bytes if name != "other" else body_bytes - 1)
        if name != "gone":
            client.set(name, encode_header(body, namespace=namespace, key=name.encode()) + body)
    if damaged_byte is not None:
        [byte] = client.getrange("1", HEAD_BYTES + damaged_byte, HEAD_BYTES + damaged_byte)
        client.setrange("1", HEAD_BYTES + damaged_byte, bytes([byte ^ 1]))
    shared = [place("", body_bytes) for _ in range(in_flight(body_bytes))]
    lengths: list[int] = []
    places: list[Place] = []
    for number, name in enumerate(names):
        here = shared[number % len(shared)]
        places.append(
            here._replace(
                name=name.encode(), check=Telling(lengths, here.body, namespace=namespace, key=name.encode())
            )
        )
    wire = connected(redis_server, slow_call_s=10 if undisturbed else 0)
    for name, got, reply in zip(names, places, wire.get(places, ttl_s=10, deadline_s=soon()), strict=True):
        assert reply.kind is {"gone": Kind.NOTHING, "other": Kind.OTHER_LENGTH}.get(name, Kind.VALUE)
        if reply.kind is Kind.VALUE:
            assert got.check is not None
            assert got.check.refusal(got.head) is (
                Refusal.BAD_CHECKSUM if name == "1" and damaged_byte is not None else None
            )
    wire.close()
    # Every verdict tells itself once of all that is there. The first value comes whole where its head did not
    # come with its first line.
    assert lengths.count(body_bytes) == 5
    assert len(lengths) >= 5 + 4 * 4 if undisturbed else len(lengths) == 5


@pytest.mark.parametrize("body_bytes", [3000, IN_FLIGHT_BYTES // 2, IN_FLIGHT_BYTES])
def test_places_share_memory_with_those_that_are_asked_for_later(wire: Wire, body_bytes: int) -> None:
    items = [
        Item(b"key-%d" % number, os.urandom(HEAD_BYTES), os.urandom(body_bytes))
        for number in range(3 * MAX_IN_FLIGHT)
    ]
    for item in items:
        assert wire.set([item], ttl_s=100, deadline_s=soon()) == [True]
    shared = [place("", body_bytes) for _ in range(in_flight(body_bytes))]
    places = [shared[number % len(shared)]._replace(name=item.name) for number, item in enumerate(items)]
    replies = wire.get(places, ttl_s=10, deadline_s=soon())
    for item, got, reply in zip(items, places, replies, strict=True):
        assert reply.kind is Kind.VALUE
        assert (bytes(got.head), bytes(got.body)) == (item.head, item.body)


def test_a_tcp_connection_can_hold_all_that_is_in_flight_where_the_host_allows_it(
    tcp_redis_server: RedisServer,
) -> None:
    buffers: list[int] = []
    for wired in (False, True):
        connection = pool(tcp_redis_server).make_connection()
        connection.connect()
        if wired:
            Wire(connection, io_timeout_s=2.0)
        buffers.append(connection._sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF))
        connection.disconnect()
    allowed = int(Path("/proc/sys/net/core/rmem_max").read_text(encoding="utf-8"))
    assert buffers[1] == (2 * IN_FLIGHT_BYTES if allowed >= IN_FLIGHT_BYTES else buffers[0])


def test_a_full_redis_takes_nothing_and_the_connection_lives_on(
    wire: Wire, own_redis_server: RedisServer
) -> None:
    own_redis_server.client.config_set("maxmemory", "1mb")
    items = [Item(b"full-%d" % number, b"h" * HEAD_BYTES, bytes(1 << 20)) for number in range(4)]
    assert not all(wire.set(items, ttl_s=10, deadline_s=soon()))
    assert kinds(wire, [place("gone", 100)]) == [Kind.NOTHING]


def test_a_connection_tells_that_its_server_is_not_the_one_to_ask(
    wire: Wire, own_redis_server: RedisServer
) -> None:
    own_redis_server.client.lpush("list", "x")
    assert kinds(wire, [place("list", 100)]) == [Kind.ERROR]
    assert not wire.misplaced
    own_redis_server.client.replicaof("127.0.0.1", 1)
    assert wire.set([Item(b"key", b"h", b"b")], ttl_s=10, deadline_s=soon()) == [False]
    assert wire.misplaced


def test_a_paused_redis_is_a_timeout_for_loads_and_stores(own_redis_server: RedisServer) -> None:
    own_redis_server.client.set("key", bytes(HEAD_BYTES + 1000))
    for ask in (
        lambda wire: list(wire.get([place("key", 1000)], ttl_s=10, deadline_s=soon())),
        lambda wire: wire.set([Item(b"big", b"h", bytes(32 << 20))], ttl_s=10, deadline_s=soon()),
    ):
        wire = Wire.connect(pool(own_redis_server), io_timeout_s=0.3)
        own_redis_server.pause()
        started_s = time.monotonic()
        try:
            with pytest.raises(TimeoutError):
                ask(wire)
            assert time.monotonic() - started_s < 5
        finally:
            own_redis_server.resume()
            wire.close()


def test_an_exchange_ends_at_its_deadline(wire: Wire, own_redis_server: RedisServer) -> None:
    own_redis_server.client.set("key", bytes(HEAD_BYTES + 1000))
    with pytest.raises(TimeoutError, match="whole exchange"):
        list(wire.get([place("key", 1000)], ttl_s=10, deadline_s=time.monotonic() - 1))


def test_a_redis_that_ends_is_a_connection_error(wire: Wire, own_redis_server: RedisServer) -> None:
    own_redis_server.stop()
    with pytest.raises(OSError, match=r"closed|pipe|reset"):
        list(wire.get([place("key", 1000)], ttl_s=10, deadline_s=soon()))


class Counting(socket.socket):
    """Counts the calls that do not wait, and makes the next ones slow."""

    polls = 0
    slow_polls = 0
    slow_s = 1.2

    def recvmsg_into(
        self, buffers: list[memoryview], ancillary_bytes: int = 0, flags: int = 0
    ) -> tuple[int, list[Any], int, Any]:
        if flags & socket.MSG_DONTWAIT:
            self.polls += 1
            if self.slow_polls:
                self.slow_polls -= 1
                time.sleep(self.slow_s)
        return super().recvmsg_into(buffers, ancillary_bytes, flags)


class Answered(NamedTuple):
    """ours: the socket of the wire."""

    wire: Wire
    ours: Counting


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        return ours, listener.accept()[0]


@contextmanager
def answered(
    reply: bytes, pieces: Iterator[tuple[int, float]], *, tcp: bool = False, **limits: float
) -> Iterator[Answered]:
    """A connection that is sent this, and then ends. pieces: bytes, and seconds before the next. limits: of
    the wire.
    """
    end, theirs = tcp_pair() if tcp else socket.socketpair()
    ours = Counting(fileno=end.detach())

    def send() -> None:
        start = 0
        with contextlib.suppress(OSError):
            while start < len(reply):
                count, pause_s = next(pieces)
                theirs.sendall(reply[start : start + count])
                start += count
                if pause_s:
                    time.sleep(pause_s)
            theirs.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    wire = Wire(SimpleNamespace(_sock=ours, disconnect=ours.close), io_timeout_s=2.0, **limits)
    sender.start()
    try:
        yield Answered(wire, ours)
    finally:
        wire.close()
        sender.join()
        theirs.close()


def reply_to_get(value: bytes) -> bytes:
    return b"$%d\r\n%s\r\n%s" % (len(value), value, PADDING)


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
@pytest.mark.parametrize("slow_call_s", [0.0, 10.0], ids=["disturbed", "undisturbed"])
@pytest.mark.parametrize("pause_s", [0.0, 1e-6, 3e-3], ids=["no pauses", "short pauses", "long pauses"])
def test_values_arrive_in_whatever_pieces_and_times(pause_s: float, slow_call_s: float, tcp: bool) -> None:
    values = [os.urandom(HEAD_BYTES + 30_000) for _ in range(6)]
    stream = (
        b"".join(reply_to_get(value) for value in values[:3])
        + b"$-1\r\n"
        + PADDING
        + b"".join(map(reply_to_get, values[3:]))
    )
    pieces = itertools.cycle((count, pause_s) for count in (1, HEAD_BYTES + 7, 2, 29_800, 77, 1, 40_000, 3))
    places = [place(f"key-{number}", 30_000) for number in range(7)]
    with answered(stream, pieces, tcp=tcp, slow_call_s=slow_call_s) as (wire, ours):
        assert kinds(wire, places) == [Kind.VALUE] * 3 + [Kind.NOTHING] + [Kind.VALUE] * 3
        # That a call is slow shows at the first command that is sent.
        assert (ours.polls > 0) is (slow_call_s > 0 and not tcp)
    del places[3]
    assert [bytes(got.head) + bytes(got.body) for got in places] == values


@pytest.mark.parametrize("body_bytes", [(512 << 10) - 1, (512 << 10) + 1, 700_000, 3_000_001])
@pytest.mark.parametrize("piece_bytes", [50_000, 128 << 10, 300_000])
def test_no_end_of_a_large_value_over_tcp_is_waited_for_in_vain(body_bytes: int, piece_bytes: int) -> None:
    """Its reader is not woken for each piece. The reply to the second value is all that comes after the
    first, and nothing after it.
    """
    namespace = bytes(32)
    body = os.urandom(body_bytes)
    values = [encode_header(body, namespace=namespace, key=name) + body for name in (b"key-0", b"key-1")]
    places = [place(f"key-{number}", body_bytes) for number in range(2)]
    places = [got._replace(check=Verification(got.body, namespace=namespace, key=got.name)) for got in places]
    stream = b"".join(map(reply_to_get, values))
    with answered(stream, itertools.repeat((piece_bytes, 0.005)), tcp=True, slow_call_s=10.0) as (wire, ours):
        assert kinds(wire, places) == [Kind.VALUE] * 2
        assert [got.check is not None and got.check.refusal(got.head) for got in places] == [None, None]
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1


def test_after_a_slow_call_an_exchange_polls_no_more_and_the_next_one_does() -> None:
    values = [os.urandom(HEAD_BYTES + 3000) for _ in range(40)]
    stream = b"".join(map(reply_to_get, values))
    places = [place(f"key-{number}", 3000) for number in range(len(values))]
    with answered(stream, itertools.repeat((len(stream), 0.0)), slow_call_s=1.0) as (wire, ours):
        ours.slow_polls = 1
        assert kinds(wire, places[:20]) == [Kind.VALUE] * 20
        assert ours.polls == 1
        assert kinds(wire, places[20:]) == [Kind.VALUE] * 20
        assert ours.polls > 1
    assert [bytes(got.head) + bytes(got.body) for got in places] == values


def test_a_value_that_only_drips_ends_at_the_deadline() -> None:
    """Every byte comes before the reader would sleep: the deadline alone ends it."""
    reply = reply_to_get(bytes(HEAD_BYTES + (1 << 20)))
    # The sender is a thread of the same process, and slower than a server.
    with answered(reply, itertools.repeat((1, 0.0)), poll_s=10.0, slow_call_s=10.0) as (wire, _):
        started_s = time.monotonic()
        with pytest.raises(TimeoutError, match="whole exchange"):
            list(wire.get([place("key", 1 << 20)], ttl_s=10, deadline_s=started_s + 0.2))
        assert time.monotonic() - started_s < 5


def test_a_server_that_ends_within_a_value_is_a_connection_error() -> None:
    reply = reply_to_get(bytes(HEAD_BYTES + 5000))[:3000]
    with (
        answered(reply, itertools.repeat((1000, 0.0))) as (wire, _),
        pytest.raises(OSError, match=r"closed|reset"),
    ):
        list(wire.get([place("key", 5000)], ttl_s=10, deadline_s=soon()))
