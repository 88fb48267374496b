"""One Redis server of the cache: its connections, and whether it is worth asking."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

from redis.connection import ConnectionPool
from redis.exceptions import (
    AskError,
    ClusterDownError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from memserve.kv.transport.breaker import Circuit, CircuitBreaker
from memserve.kv.transport.topology import Topology
from memserve.kv.transport.url import Address, CacheUrl
from memserve.kv.transport.wire import Wire

log = logging.getLogger("memserve.kv.transport.server")

# Replies of a server that lives and is not the one to ask. MovedError is an AskError, MasterDownError a
# ClusterDownError.
MISPLACED: Final = (AskError, ClusterDownError, ReadOnlyError, TryAgainError)


class Question:
    """Small commands on their way to one server. `answers` is due exactly once.

    Both raise redis-py's RedisError or OSError; the connection is then closed.
    """

    _connection: Any  # redis-py's, partly untyped

    def __init__(self, pool: ConnectionPool, commands: Sequence[tuple[str | int, ...]]) -> None:
        self._pool: Any = pool
        self._count = len(commands)
        self._connection = self._pool.get_connection()
        try:
            self._connection.send_packed_command(self._connection.pack_commands(commands))
        except BaseException:
            self._end(broken=True)
            raise

    def answers(self, deadline_s: float) -> list[Any]:
        """One for each command, error replies among them. deadline_s: on the monotonic clock; what has
        arrived by then is still taken.
        """
        taken: list[Any] = []
        broken = True
        try:
            while len(taken) < self._count:
                try:
                    taken.append(
                        self._connection.read_response(timeout=max(0.001, deadline_s - time.monotonic()))
                    )
                except ResponseError as error:
                    taken.append(error)
            broken = any(isinstance(answer, MISPLACED) for answer in taken)
        finally:
            self._end(broken=broken)
        return taken

    def _end(self, *, broken: bool) -> None:
        if broken:
            self._connection.disconnect()
        self._pool.release(self._connection)


class CacheServer:
    """One server that holds values: its connections, and whether it is worth asking. Thread-safe."""

    def __init__(
        self,
        url: CacheUrl,
        address: Address,
        topology: Topology,
        *,
        io_timeout_s: float,
        lookup_timeout_s: float,
        connect_timeout_s: float,
        failures_to_open: int,
        pause_s: float,
    ) -> None:
        """As for `CacheServers`."""
        self.address = address
        self.client = url.client(address, io_timeout_s, min(io_timeout_s, connect_timeout_s))
        self.lookup_client = url.client(address, lookup_timeout_s, min(lookup_timeout_s, connect_timeout_s))
        self.failing = False  # when last asked
        self._topology = topology
        self._io_timeout_s = io_timeout_s
        self._pause_s = pause_s
        self._breaker = CircuitBreaker(failures_to_open=failures_to_open, pause_s=0.0)
        self._lock = threading.Lock()
        self._wires: list[Wire] = []  # idle ones
        self._closing = threading.Event()
        self._prober: threading.Thread | None = None

    @property
    def circuit(self) -> Circuit:
        return self._breaker.state

    def take_wire(self) -> Wire:
        """A connection for large values; give it back, or close it. Raises RedisError or OSError."""
        while True:
            with self._lock:
                wire = self._wires.pop() if self._wires else None
            if wire is None:
                return Wire.connect(self.client.connection_pool, self._io_timeout_s)
            if wire.is_alive():  # after a restart of Redis none is
                return wire
            wire.close()

    def give_back(self, wire: Wire) -> None:
        if wire.misplaced:
            self._topology.changed()
        with self._lock:
            if not wire.misplaced and not self._closing.is_set():
                self._wires.append(wire)
                return
        wire.close()

    def answered(self, replies: Sequence[Any] = ()) -> None:
        """It lives. replies: of a Question."""
        self.failing = False
        self._breaker.succeeded()
        if any(isinstance(reply, MISPLACED) for reply in replies):
            self._topology.changed()

    def failed(self) -> bool:
        """It did not answer. Returns True when that opened the circuit: then a thread of its own tries every
        `pause_s`.
        """
        self.failing = True
        self._topology.changed()
        opened = self._breaker.failed(time.monotonic())
        with self._lock:
            if opened and not self._closing.is_set():
                self._prober = threading.Thread(target=self._probe, name="memserve_kv_probe", daemon=True)
                self._prober.start()
        return opened

    def close(self, *, wait: bool = True) -> None:
        """Not wait: for a server that is no longer one of the cache's, which calls under way may still be
        using.
        """
        with self._lock:
            self._closing.set()
            prober = self._prober
            wires, self._wires = self._wires, []
        if prober is not None and wait:
            prober.join()
        for wire in wires:
            wire.close()
        for client in (self.client, self.lookup_client):
            client.connection_pool.disconnect(inuse_connections=wait)

    def _probe(self) -> None:
        """Until it answers again, or is no longer one of the servers."""
        while not self._closing.wait(self._pause_s):
            self._breaker.allows(time.monotonic())
            try:
                self.client.ping()
            except (RedisError, OSError):
                self._breaker.failed(time.monotonic())
                self._topology.changed()
            except Exception:
                # Whatever it is, it is no answer; without this thread the server would not be tried again.
                log.exception("a server of the cache cannot be tried")
                self._breaker.failed(time.monotonic())
            else:
                self._breaker.succeeded()
                return
