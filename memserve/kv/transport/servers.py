"""The Redis servers behind `cache_redis_url`: one server, a Redis Cluster, or the master that Sentinels name.
redis-py finds the topology.

redis-py's own cluster client is not used for commands: after an error of one node it asks again for every
key, one by one and with the topology in between, so that a look-up would take as many timeouts as it has
keys. Here each node gets one batch, once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from memserve.kv.transport.breaker import Circuit
from memserve.kv.transport.server import CacheServer
from memserve.kv.transport.topology import Topology
from memserve.kv.transport.url import Address, parse_cache_url
from memserve.processes.supervised import Failed, uncounted

T = TypeVar("T")


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
