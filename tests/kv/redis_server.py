"""Several redis-servers for tests: a cluster of masters, and a master that Sentinels watch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import redis
from redis.crc import key_slot

from loadtests.harness.redis_server import RedisServer

CLUSTER_SLOTS = 16384


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Raises TimeoutError."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"not within {timeout_s} s: {condition}")
        time.sleep(0.02)


class RedisClusterServers:
    """Three masters with a third of the slots each, and no replicas."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.nodes: list[RedisServer] = []
        self.url = ""

    def start(self) -> None:
        for number in range(3):
            folder = self._directory / str(number)
            folder.mkdir()
            self.nodes.append(RedisServer(folder, tcp=True))
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        third = CLUSTER_SLOTS // 3
        starts = [0, third, 2 * third, CLUSTER_SLOTS]
        for number, node in enumerate(self.nodes):
            # The nodes whose masters live go on serving, as a cache's should.
            node.start(
                "--cluster-enabled",
                "yes",
                "--cluster-node-timeout",
                "3000",
                "--cluster-require-full-coverage",
                "no",
            )
            node.client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            node.client.execute_command("CLUSTER", "ADDSLOTS", *range(starts[number], starts[number + 1]))
            node.client.execute_command("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port)
        wait_until(lambda: all(self._complete(node) for node in self.nodes))

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()

    def nodes_of(self, names: Sequence[str]) -> list[RedisServer]:
        """The node that holds each name, as the first node sees it."""
        ports = {
            slot: master[1]
            for start, end, master, *_ in self._slots(self.nodes[0])
            for slot in range(start, end + 1)
        }
        by_port = {node.port: node for node in self.nodes}
        return [by_port[ports[key_slot(name.encode())]] for name in names]

    def begin_move(self, name: str, to: RedisServer) -> None:
        """Begin to move the slot of a name: what is not on its master is to be asked for at `to`."""
        [source], slot = self.nodes_of([name]), key_slot(name.encode())
        to.client.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", self._id(source))
        source.client.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", self._id(to))

    def end_move(self, name: str, to: RedisServer) -> None:
        """Move what is there, and tell every node."""
        [source], slot = self.nodes_of([name]), key_slot(name.encode())
        for key in source.client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 1000):
            source.client.execute_command("MIGRATE", "127.0.0.1", to.port, key, 0, 5000)
        for node in (to, source, *self.nodes):
            node.client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", self._id(to))

    def _slots(self, node: RedisServer) -> list[list]:  # type: ignore[type-arg]
        with redis.Redis(port=node.port, protocol=2) as client:
            client.response_callbacks.pop("CLUSTER SLOTS", None)
            return list(client.execute_command("CLUSTER SLOTS"))

    def _complete(self, node: RedisServer) -> bool:
        serves = b"cluster_state:ok" in node.client.execute_command("CLUSTER", "INFO", NEVER_DECODE=True)
        return serves and sum(end - start + 1 for start, end, *_ in self._slots(node)) == CLUSTER_SLOTS

    def _id(self, node: RedisServer) -> str:
        return bytes(node.client.execute_command("CLUSTER", "MYID")).decode()


class SentinelServers:
    """A master, a replica, and three Sentinels that call the master "cache"."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.servers: list[RedisServer] = []
        self.sentinels: list[RedisServer] = []
        self.url = ""

    def start(self) -> None:
        for number in range(5):
            folder = self._directory / str(number)
            folder.mkdir()
            (self.servers if number < 2 else self.sentinels).append(RedisServer(folder, tcp=True))
        master, replica = self.servers
        master.start("--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0")
        replica.start("--replicaof", "127.0.0.1", str(master.port))
        wait_until(lambda: replica.client.info("replication")["master_link_status"] == "up")
        for number, sentinel in enumerate(self.sentinels):
            file = self._directory / f"sentinel{number}.conf"
            file.write_text(
                f"port {sentinel.port}\nbind 127.0.0.1\ndir {self._directory}\n"
                f"sentinel monitor cache 127.0.0.1 {master.port} 2\n"
                "sentinel down-after-milliseconds cache 800\nsentinel failover-timeout cache 2000\n",
                encoding="utf-8",
            )
            sentinel.run(str(file), "--sentinel")
        self.url = (
            "redis+sentinel://"
            + ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
            + "/cache"
        )
        wait_until(lambda: all(self._knows_all(sentinel) for sentinel in self.sentinels))

    def stop(self) -> None:
        for server in (*self.sentinels, *self.servers):
            server.stop()

    def master(self) -> RedisServer:
        """As the first Sentinel sees it."""
        _, port = self.sentinels[0].client.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", "cache")
        return next(server for server in self.servers if server.port == int(port))

    def _knows_all(self, sentinel: RedisServer) -> bool:
        master = sentinel.client.sentinel_masters()["cache"]
        return bool(master["num-other-sentinels"] == 2 and master["num-slaves"] == 1)
