"""Which servers hold the cache's values: one server, the masters of a Redis Cluster, or the master that
Sentinels name.

redis-py finds the topology.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Final, Protocol

from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, NodesManager
from redis.crc import key_slot
from redis.exceptions import RedisClusterException, RedisError
from redis.retry import Retry
from redis.sentinel import Sentinel

from memserve.kv.transport.url import Address, CacheUrl, Deployment
from memserve.processes.supervised import Failed, repeating_thread, uncounted

# A Sentinel that made another server the master by hand leaves no error behind for those who only read.
REFRESH_S: Final = 30.0
# An IndexError is what NodesManager makes of a cluster without a single slot.
LEARNING_FAILS: Final = (RedisError, RedisClusterException, OSError, IndexError)


class _Source(Protocol):
    """Blocking; `learn` raises one of `LEARNING_FAILS`, and then what was known stays."""

    def learn(self) -> frozenset[Address]: ...

    def address_of(self, name: str) -> Address | None: ...

    def close(self) -> None: ...


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
