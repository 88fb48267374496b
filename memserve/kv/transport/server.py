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
from memserve.kv.transport.limits import CacheLimits
from memserve.kv.transport.topology import Topology
from memserve.kv.transport.url import Address, CacheUrl
from memserve.kv.transport.wire import Wire

log = logging.getLogger("memserve.kv.transport.server")

# A server that answers with one of these lives, but another server has to be asked. MovedError is an
# AskError, and MasterDownError is a ClusterDownError.
MISPLACED: Final = (AskError, ClusterDownError, ReadOnlyError, TryAgainError)


class Question:
    """Small commands on their way to one server. `answers` has to be called exactly once.

    The constructor and `answers` raise redis-py's RedisError or OSError. The connection is then closed.
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
        """One answer for each command. An error reply is an answer too.

        deadline_s: on the monotonic clock. Answers that have arrived by then are still taken.
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
        limits: CacheLimits,
    ) -> None:
        """Does not connect."""
        self.address = address
        self.client = url.client(address, limits.io_s, min(limits.io_s, limits.connect_s))
        self.lookup_client = url.client(address, limits.lookup_s, min(limits.lookup_s, limits.connect_s))
        self.failing = False
        """Whether the server failed when it was asked last."""
        self._topology = topology
        self._limits = limits
        # The probing thread keeps the pauses.
        self._breaker = CircuitBreaker(failures_to_open=limits.failures_to_open, pause_s=0.0)
        self._lock = threading.Lock()
        self._idle_wires: list[Wire] = []
        self._closing = threading.Event()
        self._prober: threading.Thread | None = None

    @property
    def circuit(self) -> Circuit:
        return self._breaker.state

    def take_wire(self) -> Wire:
        """A connection for large values.

        The caller gives it back or closes it. Raises RedisError or OSError.
        """
        while True:
            with self._lock:
                wire = self._idle_wires.pop() if self._idle_wires else None
            if wire is None:
                return Wire.connect(self.client.connection_pool, self._limits.io_s)
            # After a restart of Redis no idle connection is alive.
            if wire.is_alive():
                return wire
            wire.close()

    def give_back(self, wire: Wire) -> None:
        if wire.misplaced:
            self._topology.changed()
        with self._lock:
            if not wire.misplaced and not self._closing.is_set():
                self._idle_wires.append(wire)
                return
        wire.close()

    def answered(self, replies: Sequence[Any] = ()) -> None:
        """The server lives.

        replies: of a Question.
        """
        self.failing = False
        self._breaker.succeeded()
        if any(isinstance(reply, MISPLACED) for reply in replies):
            self._topology.changed()

    def failed(self) -> bool:
        """The server did not answer. Returns True when this failure opened the circuit.

        From then on a thread tries the server every `pause_s`, so that no request waits for a trial.
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
        """Close the connections.

        wait: whether to wait for the probing thread and close connections in use. False for a server that has
        left the cache: calls under way may still use it.
        """
        with self._lock:
            self._closing.set()
            prober = self._prober
            wires, self._idle_wires = self._idle_wires, []
        if prober is not None and wait:
            prober.join()
        for wire in wires:
            wire.close()
        for client in (self.client, self.lookup_client):
            client.connection_pool.disconnect(inuse_connections=wait)

    def _probe(self) -> None:
        """Try the server until it answers again or is closed."""
        while not self._closing.wait(self._limits.pause_s):
            self._breaker.allows(time.monotonic())
            try:
                self.client.ping()
            except (RedisError, OSError):
                self._breaker.failed(time.monotonic())
                self._topology.changed()
            except Exception:
                # Any other error is no answer either. The thread must go on: nothing else tries this server.
                log.exception("a server of the cache cannot be tried")
                self._breaker.failed(time.monotonic())
            else:
                self._breaker.succeeded()
                return
