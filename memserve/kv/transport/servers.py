"""The Redis servers behind `cache_redis_url`: one server, a Redis Cluster, or the master that Sentinels name.

redis-py finds the topology, but its cluster client sends no commands here. After an error of one node that
client asks again for every key, one by one, and asks for the topology in between. A look-up would take one
timeout for each of its keys. Here every node gets one batch, once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from memserve.kv.transport.breaker import Circuit
from memserve.kv.transport.limits import CacheLimits
from memserve.kv.transport.server import CacheServer
from memserve.kv.transport.topology import Topology
from memserve.kv.transport.url import Address, parse_cache_url
from memserve.processes.supervised import Failed, uncounted

T = TypeVar("T")


class CacheServers:
    """The servers of one cache, for blocking callers. Thread-safe.

    Each server has a circuit breaker of its own. A master that is down costs its own part of the keys and no
    other.
    """

    def __init__(self, redis_url: str, limits: CacheLimits, *, failed: Failed = uncounted) -> None:
        """Does not connect.

        redis_url: as `parse_cache_url` takes it, which raises ValueError.
        failed: called with the name of a background thread whose step fails.
        """
        self._url = parse_cache_url(redis_url)
        self._topology = Topology(
            self._url, timeout_s=limits.connect_s, pause_s=limits.pause_s, failed=failed
        )
        self._limits = limits
        self._lock = threading.Lock()
        self._servers: dict[Address, CacheServer] = {}
        self._seen = self._topology.addresses

    @property
    def circuit(self) -> Circuit:
        """The worst of the servers' circuits. OPEN too when nothing says which servers there are."""
        if self._topology.tried and not self._topology.addresses:
            return Circuit.OPEN
        with self._lock:
            circuits = [server.circuit for server in self._servers.values()]
        return max(circuits, key=lambda circuit: circuit.value, default=Circuit.CLOSED)

    def groups(self, names: Sequence[str], wait_s: float) -> dict[CacheServer, list[int]]:
        """The numbers of the names that each server holds. A name that no known server holds is in no group.

        Servers that failed when they were asked last come last, so that they take no time from the others.

        wait_s: how long to wait for the topology, at the very first use.
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
            holders = [(self._server(address), numbers) for address, numbers in groups.items()]
        for server in gone:
            server.close(wait=False)
        return dict(sorted(holders, key=lambda holder: holder[0].failing))

    def ask(self, name: str, question: Callable[[Redis], T]) -> T:
        """One exchange with the server that holds `name`.

        Raises RedisError or OSError, and does so at once while the server's circuit is open.
        """
        [answer] = self._ask_holders(self._holders([name]), lambda client, _: question(client))
        return answer

    def ask_each(self, names: Sequence[str], command: Callable[[Any, int], object]) -> list[Any]:
        """One command for each name, in one round trip to every server. Returns [names] answers.

        Raises as `ask` when any server does not answer or refuses.

        command: called with a pipeline and a name's number; puts the command for that name into the pipeline.
        """

        def batch(client: Redis, numbers: Sequence[int]) -> list[tuple[int, Any]]:
            with client.pipeline(transaction=False) as pipeline:
                for number in numbers:
                    command(pipeline, number)
                return list(zip(numbers, pipeline.execute(), strict=True))

        answers = dict(answer for part in self._ask_holders(self._holders(names), batch) for answer in part)
        return [answers[number] for number in range(len(names))]

    def _holders(self, names: Sequence[str]) -> dict[CacheServer, list[int]]:
        groups = self.groups(names, self._limits.connect_s)
        if sum(map(len, groups.values())) < len(names):
            raise RedisConnectionError("no known server of the cache holds this key")
        return groups

    def _ask_holders(
        self, holders: dict[CacheServer, list[int]], question: Callable[[Redis, list[int]], T]
    ) -> list[T]:
        answers = []
        for server, numbers in holders.items():
            if server.circuit is not Circuit.CLOSED:
                raise RedisConnectionError("the server did not answer and is not asked for a while")
            try:
                answers.append(question(server.client, numbers))
            except ResponseError as error:  # the server lives, and says no
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
            self._servers[address] = CacheServer(self._url, address, self._topology, self._limits)
        return self._servers[address]
