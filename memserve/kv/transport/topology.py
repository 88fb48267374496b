"""Which servers hold the cache's values.

They are one server, the masters of a Redis Cluster, or the master that Sentinels name. redis-py finds them.
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

# The topology is asked for from time to time even without an error. When an operator has a Sentinel make
# another server the master, a client that only reads sees no error.
REFRESH_S: Final = 30.0
# NodesManager raises IndexError for a cluster without a single slot.
LEARNING_FAILS: Final = (RedisError, RedisClusterException, OSError, IndexError)


class _Source(Protocol):
    """Where the topology is learned from. Blocks.

    `learn` raises one of `LEARNING_FAILS`. What the source knew before then stays.
    """

    def learn(self) -> frozenset[Address]: ...

    def address_of(self, name: str) -> Address | None: ...

    def close(self) -> None: ...


class ClusterNodes:
    """redis-py's table of slots.

    redis-py's RedisCluster is not used: it would also ask the first master for COMMAND, and fail where that
    master is gone.
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
            # The configured names too. When all pods come back with new addresses, only the names find them.
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
    """The master of a service, as its Sentinels name it."""

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

    For a single server the answer is fixed. In the other cases a thread asks the cluster's nodes or the
    Sentinels:

    1. At the first use. This answer is the only one that callers wait for.
    2. When `changed` is called, but at most once every `pause_s`. A storm of errors leads to one question.
    3. Every `REFRESH_S`.

    Thread-safe.
    """

    def __init__(
        self, url: CacheUrl, *, timeout_s: float, pause_s: float, failed: Failed = uncounted
    ) -> None:
        """Does not connect.

        timeout_s: for each connection and each answer of a server that is asked about the topology.
        """
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
        self._refresh_wanted = threading.Event()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        if self._source is None:
            self._tried.set()

    @property
    def addresses(self) -> frozenset[Address]:
        """The servers that hold values, as last learned.

        The object stays the same while they stay the same.
        """
        return self._addresses

    @property
    def tried(self) -> bool:
        """Whether the first attempt to learn the servers is over. Then `wait` returns at once."""
        return self._tried.is_set()

    def wait(self, timeout_s: float) -> None:
        """Wait until the first attempt to learn the servers is over, whether it succeeded or not."""
        if not self._tried.is_set():
            self.changed()
            self._tried.wait(timeout_s)

    def groups(self, names: Sequence[str]) -> dict[Address, list[int]]:
        """The numbers of the names that each server holds.

        A name that no known server holds is in no group.
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
        """Have the topology learned anew. Returns at once.

        Called when a server does not answer, or answers that another server has to be asked.
        """
        if self._source is None:
            return
        with self._lock:
            if (self._thread is None or not self._thread.is_alive()) and not self._closing.is_set():
                self._refresh_wanted.set()
                self._thread = repeating_thread(
                    "kv_topology", self._refresh, self._pause_s, self._closing, self._failed
                )
        self._refresh_wanted.set()

    def close(self) -> None:
        """Waits for a question that is under way."""
        self._closing.set()
        self._refresh_wanted.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()
        if self._source is not None:
            self._source.close()

    def _refresh(self) -> None:
        """Learn the servers once a caller wants them or the last answer is old. One step of the thread."""
        assert self._source is not None
        self._refresh_wanted.wait(REFRESH_S)
        if self._closing.is_set():
            return
        self._refresh_wanted.clear()
        try:
            addresses = self._source.learn()
            if addresses != self._addresses:
                self._addresses = addresses
        except LEARNING_FAILS:
            pass  # a caller that still needs it calls `changed` again
        finally:
            self._tried.set()
