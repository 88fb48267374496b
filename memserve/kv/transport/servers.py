"""The Redis servers behind `cache_redis_url`: one server, a Redis Cluster, or the master that Sentinels name.
redis-py finds the topology.

redis-py's own cluster client is not used for commands: after an error of one node it asks again for every
key, one by one and with the topology in between, so that a look-up would take as many timeouts as it has
keys. Here each node gets one batch, once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, TypeVar

from redis import Redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, NodesManager
from redis.connection import ConnectionPool
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    ClusterDownError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry
from redis.sentinel import Sentinel

from memserve.kv.transport.breaker import Circuit, CircuitBreaker
from memserve.kv.transport.url import Address, CacheUrl, Deployment, parse_cache_url
from memserve.kv.transport.wire import Wire
from memserve.processes.supervised import Failed, repeating_thread, uncounted

log = logging.getLogger("memserve.kv.transport.servers")

T = TypeVar("T")

# A Sentinel that made another server the master by hand leaves no error behind for those who only read.
REFRESH_S: Final = 30.0
# Replies of a server that lives and is not the one to ask. MovedError is an AskError, MasterDownError a
# ClusterDownError.
MISPLACED: Final = (AskError, ClusterDownError, ReadOnlyError, TryAgainError)


class _Source(Protocol):
    """Blocking; `learn` raises one of `LEARNING_FAILS`, and then what was known stays."""

    def learn(self) -> frozenset[Address]: ...

    def address_of(self, name: str) -> Address | None: ...

    def close(self) -> None: ...


# An IndexError is what NodesManager makes of a cluster without a single slot.
LEARNING_FAILS: Final = (RedisError, RedisClusterException, OSError, IndexError)


class ClusterNodes:
    """redis-py's table of slots. Its RedisCluster would ask the first master for COMMAND too, and fail where
    that one is gone.
    """

    def __init__(self, url: CacheUrl, timeout_s: float) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._nodes: NodesManager | None = None

    @property
    def covered_slots(self) -> int:
        return len(self._nodes.slots_cache) if self._nodes is not None else 0

    def learn(self) -> frozenset[Address]:
        if self._nodes is None:
            self._nodes = NodesManager(
                [ClusterNode(host, port) for host, port in self._url.addresses],  # type: ignore[no-untyped-call]
                require_full_coverage=False,
                protocol=2,
                socket_timeout=self._timeout_s,
                socket_connect_timeout=self._timeout_s,
                **self._url.options,
            )
        else:
            # The configured names too: pods that all come back with new addresses are found again only by
            # them.
            self._nodes.initialize(additional_startup_nodes_info=list(self._url.addresses))
        return frozenset(
            (str(node.host), int(node.port)) for node in self._nodes.get_nodes_by_server_type("primary")
        )

    def address_of(self, name: str) -> Address | None:
        nodes = self._nodes.slots_cache.get(key_slot(name.encode())) if self._nodes is not None else None
        return (str(nodes[0].host), int(nodes[0].port)) if nodes else None

    def close(self) -> None:
        if self._nodes is not None:
            self._nodes.close()


class SentinelMaster:
    def __init__(self, url: CacheUrl, timeout_s: float) -> None:
        self._service = url.service
        limits = {
            "protocol": 2,
            "socket_timeout": timeout_s,
            "socket_connect_timeout": timeout_s,
            "retry": Retry(NoBackoff(), 0),
        }
        self._sentinel: Any = Sentinel(  # type: ignore[no-untyped-call]
            list(url.addresses), sentinel_kwargs={**url.sentinel_options, **limits}
        )
        self._master: Address | None = None

    def learn(self) -> frozenset[Address]:
        host, port = self._sentinel.discover_master(self._service)
        self._master = (str(host), int(port))
        return frozenset({self._master})

    def address_of(self, name: str) -> Address | None:
        return self._master

    def close(self) -> None:
        self._sentinel.close()


class Topology:
    """Which server holds a name.

    For one server that is no question. A cluster's nodes or the Sentinels are asked by a thread of its own:
    at the first use, when told that something changed, but no more than once every `pause_s`, and every
    `REFRESH_S`. Only for the first answer does anyone wait; a storm of errors is one question. Thread-safe.
    """

    def __init__(
        self, url: CacheUrl, *, timeout_s: float, pause_s: float, failed: Failed = uncounted
    ) -> None:
        """timeout_s: for each connection, and each answer, of a server that is asked. Does not connect."""
        self._single = url.addresses[0] if url.deployment is Deployment.SINGLE else None
        self._source: _Source | None = None
        if url.deployment is Deployment.CLUSTER:
            self._source = ClusterNodes(url, timeout_s)
        elif url.deployment is Deployment.SENTINEL:
            self._source = SentinelMaster(url, timeout_s)
        self._pause_s = pause_s
        self._failed = failed
        self._addresses = frozenset(url.addresses if self._source is None else ())
        self._tried = threading.Event()
        self._wanted = threading.Event()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        if self._source is None:
            self._tried.set()

    @property
    def addresses(self) -> frozenset[Address]:
        """The servers that hold values, as last learned; the same object for as long as they are the same."""
        return self._addresses

    @property
    def tried(self) -> bool:
        """Whether `wait` returns at once: the servers are known, or could not be learned at the first
        attempt.
        """
        return self._tried.is_set()

    def wait(self, timeout_s: float) -> None:
        """Until the first attempt to learn the servers is over, well or not."""
        if not self._tried.is_set():
            self.changed()
            self._tried.wait(timeout_s)

    def groups(self, names: Sequence[str]) -> dict[Address, list[int]]:
        """The numbers of the names that each server holds. A name that no known server holds is in no
        group.
        """
        if self._single is not None:
            return {self._single: list(range(len(names)))} if names else {}
        assert self._source is not None
        groups: dict[Address, list[int]] = {}
        for number, name in enumerate(names):
            address = self._source.address_of(name)
            if address is not None:
                groups.setdefault(address, []).append(number)
        if not self._addresses:
            self.changed()
        return groups

    def changed(self) -> None:
        """Something is not as it was: a server does not answer, or says that another one is to be asked.
        Returns at once.
        """
        if self._source is None:
            return
        with self._lock:
            if (self._thread is None or not self._thread.is_alive()) and not self._closing.is_set():
                self._wanted.set()
                self._thread = repeating_thread(
                    "kv_topology", self._keep, self._pause_s, self._closing, self._failed
                )
        self._wanted.set()

    def close(self) -> None:
        """Waits for a question that is out."""
        self._closing.set()
        self._wanted.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()
        if self._source is not None:
            self._source.close()

    def _keep(self) -> None:
        """Ask which servers there are, when somebody wants to know or the last answer is old. For the
        thread.
        """
        assert self._source is not None
        self._wanted.wait(REFRESH_S)
        if self._closing.is_set():
            return
        self._wanted.clear()
        try:
            addresses = self._source.learn()
            if addresses != self._addresses:
                self._addresses = addresses
        except LEARNING_FAILS:
            pass  # whoever needs it says so again
        finally:
            self._tried.set()


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


class CacheServers:
    """The servers of one cache, for blocking callers. Thread-safe.

    Each has a circuit breaker of its own: a master that is down costs its own part of the keys, and no other.
    """

    def __init__(
        self,
        redis_url: str,
        *,
        io_timeout_s: float,
        lookup_timeout_s: float,
        connect_timeout_s: float,
        failures_to_open: int,
        pause_s: float,
        failed: Failed = uncounted,
    ) -> None:
        """The timeouts are those of `RedisChunkStore`. failed: called with the name of a background thread
        whose step fails.

        Raises ValueError as `parse_cache_url`. Does not connect.
        """
        self._url = parse_cache_url(redis_url)
        self._topology = Topology(self._url, timeout_s=connect_timeout_s, pause_s=pause_s, failed=failed)
        self._limits = {
            "io_timeout_s": io_timeout_s,
            "lookup_timeout_s": lookup_timeout_s,
            "connect_timeout_s": connect_timeout_s,
            "pause_s": pause_s,
        }
        self._failures_to_open = failures_to_open
        self._lock = threading.Lock()
        self._servers: dict[Address, CacheServer] = {}
        self._seen = self._topology.addresses

    @property
    def circuit(self) -> Circuit:
        """The worst of the servers' circuits. OPEN too when it could not be learned which servers there
        are.
        """
        if self._topology.tried and not self._topology.addresses:
            return Circuit.OPEN
        with self._lock:
            circuits = [server.circuit for server in self._servers.values()]
        return max(circuits, key=lambda circuit: circuit.value, default=Circuit.CLOSED)

    def groups(self, names: Sequence[str], wait_s: float) -> dict[CacheServer, list[int]]:
        """The numbers of the names that each server holds; a name that no known server holds is in no group.

        Servers that failed when last asked come last, so that they take no time from the others. wait_s: how
        long to wait for the servers to be learned, at the very first use.
        """
        self._topology.wait(wait_s)
        groups = self._topology.groups(names)
        addresses = self._topology.addresses
        gone: list[CacheServer] = []
        with self._lock:
            if addresses is not self._seen:
                self._seen = addresses
                gone = [
                    self._servers.pop(address) for address in list(self._servers) if address not in addresses
                ]
            held = [(self._server(address), numbers) for address, numbers in groups.items()]
        for server in gone:
            server.close(wait=False)
        return dict(sorted(held, key=lambda each: each[0].failing))

    def ask(self, name: str, question: Callable[[Redis], T]) -> T:
        """One exchange with the server that holds `name`. Raises RedisError or OSError, at once while its
        circuit is open.
        """
        [answer] = self._ask_each(self._known([name]), lambda client, _: question(client))
        return answer

    def ask_each(self, names: Sequence[str], command: Callable[[Any, int], object]) -> list[Any]:
        """One command a name, in one round trip to every server; `command` is given the pipeline and the
        name's number.

        Raises as `ask`, when any server does not answer or refuses.
        """

        def batch(client: Redis, numbers: Sequence[int]) -> list[tuple[int, Any]]:
            with client.pipeline(transaction=False) as pipeline:
                for number in numbers:
                    command(pipeline, number)
                return list(zip(numbers, pipeline.execute(), strict=True))

        answers = dict(answer for part in self._ask_each(self._known(names), batch) for answer in part)
        return [answers[number] for number in range(len(names))]

    def _known(self, names: Sequence[str]) -> dict[CacheServer, list[int]]:
        groups = self.groups(names, self._limits["connect_timeout_s"])
        if sum(map(len, groups.values())) < len(names):
            raise RedisConnectionError("no known server of the cache holds this key")
        return groups

    def _ask_each(
        self, groups: dict[CacheServer, list[int]], question: Callable[[Redis, list[int]], T]
    ) -> list[T]:
        answers = []
        for server, numbers in groups.items():
            if server.circuit is not Circuit.CLOSED:
                raise RedisConnectionError("the server did not answer and is not asked for a while")
            try:
                answers.append(question(server.client, numbers))
            except ResponseError as error:  # it lives and says no
                server.answered([error])
                raise
            except (RedisError, OSError):
                server.failed()
                raise
            server.answered()
        return answers

    def close(self) -> None:
        self._topology.close()
        with self._lock:
            servers, self._servers = list(self._servers.values()), {}
        for server in servers:
            server.close()

    def _server(self, address: Address) -> CacheServer:
        if address not in self._servers:
            self._servers[address] = CacheServer(
                self._url, address, self._topology, failures_to_open=self._failures_to_open, **self._limits
            )
        return self._servers[address]
