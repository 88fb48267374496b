"""How fast verified KV values come out of Redis, against a plain `recv_into` loop and against redis-py's GET
(with hiredis).

A private redis-server, one connection an arm, values of 0.25 to 4 MiB, 64 MiB of them. The tier alternates
with the plain loop, and then with redis-py; a figure is the median of the rounds' ratios. Every few rounds
each arm connects anew: how large the kernel makes the buffers of a TCP connection is settled early,
differently each time, and makes a fifth. The client is on one core, Redis on another. The plain loop sends
the same commands with as many in flight, and every payload comes to the same place in memory as with the
tier: where Redis and the client have the bytes, and how that is aligned to the kernel's buffers between them,
makes up to a factor of two. It verifies nothing and expects no misses. redis-py's values are kept until the
last has come, as a prefix's must be.
"""

from __future__ import annotations

import mmap
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import redis

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.redis_server import PrivateRedis
from memserve.kv.keys import redis_key
from memserve.kv.store import RedisChunkStore
from memserve.kv.transport.limits import CacheLimits
from memserve.kv.transport.wire import PADDING, get_command, in_flight
from memserve.kv.values.envelope import HEADER_BYTES

NAMESPACE = "ab" * 32
SIZES_KIB = (256, 1024, 2048, 4096)
TOTAL_BYTES = 64 << 20
TTL_S = 3600


def plain_loop(
    connected: socket.socket, names: Sequence[str], buffers: Sequence[memoryview], value_bytes: int
) -> Callable[[], None]:
    """Get every name, receiving each whole reply into a buffer. Returns the function that does it once."""
    reply_bytes = len(b"$%d\r\n" % value_bytes) + value_bytes + 2 + len(PADDING)
    commands = [get_command(name.encode(), ttl_s=TTL_S) for name in names]
    ahead = in_flight(value_bytes)

    def once() -> None:
        sent = 0
        for number in range(len(commands)):
            if sent < min(len(commands), number + ahead):
                until = min(len(commands), number + ahead)
                connected.sendall(b"".join(commands[sent:until]))
                sent = until
            received = 0
            while received < reply_bytes:
                received += connected.recv_into(buffers[number][received:reply_bytes], 0, socket.MSG_WAITALL)

    return once


def alternate(
    first: Callable[[], None], second: Callable[[], None], rounds: int
) -> tuple[list[float], list[float]]:
    """Seconds of each in every round; a round that warms up comes before."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for work, taken in zip((first, second), seconds, strict=True):
            started_s = time.perf_counter()
            work()
            if number:
                taken.append(time.perf_counter() - started_s)
    return seconds


def measure(
    server: PrivateRedis, transport: str, size_kib: int, connections: int, rounds: int
) -> dict[str, float]:
    """Returns the median throughput of each arm, GB/s, the tier's beside either of the others, and the median
    ratios.

    connections: of each arm, one after the other. rounds: of each of them.
    """
    payload_bytes = size_kib << 10
    count = max(4, TOTAL_BYTES // payload_bytes)
    url = server.url if transport == "unix" else server.tcp_url
    keys = [number.to_bytes(36, "big") for number in range(count)]
    names = [redis_key(NAMESPACE, key) for key in keys]
    body = os.urandom(payload_bytes)
    with closing(RedisChunkStore(url, NAMESPACE, ttl_s=TTL_S, limits=CacheLimits(io_s=5.0))) as store:
        store.store(keys, [body] * count, budget_s=60)
    # A payload begins with a page; what stands before and behind it in a reply has a page each.
    page = mmap.PAGESIZE
    places = [memoryview(mmap.mmap(-1, page + payload_bytes + page)) for _ in keys]
    destinations = [place[page : page + payload_bytes] for place in places]
    value_bytes = HEADER_BYTES + payload_bytes
    reply_start = page - HEADER_BYTES - len(b"$%d\r\n" % value_bytes)
    seconds: dict[str, tuple[list[float], list[float]]] = {"plain": ([], []), "redis_py": ([], [])}
    for _ in range(connections):
        with (
            closing(RedisChunkStore(url, NAMESPACE, ttl_s=TTL_S, limits=CacheLimits(io_s=5.0))) as store,
            socket.socket(socket.AF_UNIX if transport == "unix" else socket.AF_INET) as connected,
            redis.Redis.from_url(url) as client,
        ):
            connected.connect(str(server.socket) if transport == "unix" else ("127.0.0.1", server.port))
            if transport == "tcp":  # as redis-py does
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

            def tier(store: RedisChunkStore = store) -> None:
                assert all(store.load(keys, destinations, budget_s=60))

            def redis_py(client: redis.Redis = client) -> None:
                values = [client.get(name) for name in names]
                assert None not in values

            plain = plain_loop(connected, names, [place[reply_start:] for place in places], value_bytes)
            for name, other in (("plain", plain), ("redis_py", redis_py)):
                for taken, more in zip(seconds[name], alternate(tier, other, rounds), strict=True):
                    taken += more
    assert destinations[-1] == body
    with redis.Redis.from_url(url) as client:
        client.flushall()
    gigabytes = count * payload_bytes / 1e9
    figures: dict[str, float] = {}
    for name, (own_s, other_s) in seconds.items():
        figures[f"{name}_gb_s"] = gigabytes / statistics.median(other_s)
        figures[f"tier_beside_{name}_gb_s"] = gigabytes / statistics.median(own_s)
        figures[f"tier_of_{name}"] = statistics.median(
            theirs / own for own, theirs in zip(own_s, other_s, strict=True)
        )
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    chosen = parser("kv_wire", __doc__).parse_args(arguments)
    connections, rounds = (6, 3) if chosen.quick else (10, 4)
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder, PrivateRedis(Path(folder)) as server:
        # The scheduler puts the two on one core or on two as it likes, for seconds, and one arm may get all
        # of either.
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[:1])
        os.sched_setaffinity(server.process.pid, cores[-1:])
        for transport in ("unix", "tcp"):
            for size in SIZES_KIB:
                report(
                    f"{transport}, {size} KiB: {connections} connections, {rounds} rounds of "
                    f"{TOTAL_BYTES >> 20} MiB an arm on each"
                )
                figures[f"{transport}_{size}_kib"] = measure(server, transport, size, connections, rounds)
    columns = (
        "value",
        "tier GB/s",
        "plain GB/s",
        "tier ÷ plain",
        "tier GB/s",
        "redis-py GB/s",
        "tier ÷ redis-py",
    )
    names = (
        "tier_beside_plain_gb_s",
        "plain_gb_s",
        "tier_of_plain",
        "tier_beside_redis_py_gb_s",
        "redis_py_gb_s",
        "tier_of_redis_py",
    )
    print_table(
        columns, [[name, *(f"{row[column]:.2f}" for column in names)] for name, row in figures.items()]
    )
    bars = [
        Bar(f"{name}: tier ÷ plain loop", row["tier_of_plain"], at_least=0.8) for name, row in figures.items()
    ]
    bars += [
        Bar(f"{name}: tier ÷ redis-py", row["tier_of_redis_py"], at_least=2.0)
        for name, row in figures.items()
    ]
    return finish(bars, {"figures": figures}, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
