"""redis-servers that speak TLS only: one, a cluster of three, and a master that a Sentinel watches.

The program is Debian's, which `make deploy-tools` fetches: the one of `memserve up` is built without TLS.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import redis

from loadtests.harness.kept_port import KeptPort
from loadtests.harness.redis_server import CLUSTER_BUS
from memserve.tls.pem import PemFiles

UNPACKED = Path(__file__).resolve().parents[2] / ".cache" / "debian" / "usr" / "bin"
SLOTS = 16384
READY_S = 20.0


def redis_with_tls() -> str:
    """The program. Raises FileNotFoundError."""
    found = shutil.which("redis-server") or shutil.which("redis-server", path=str(UNPACKED))
    if found is None:
        raise FileNotFoundError("redis-server with TLS is missing: `make deploy-tools` fetches it")
    return found


def arguments(files: PemFiles, port: int, folder: Path, *options: str, bind: str = "127.0.0.1") -> list[str]:
    """The command line of a server that takes no connection without TLS and without a certificate."""
    return [
        redis_with_tls(), "--port", "0", "--tls-port", str(port), "--bind", bind, "--dir", str(folder),
        "--save", "", "--tls-cert-file", str(files.certificate), "--tls-key-file", str(files.key),
        "--tls-ca-cert-file", str(files.authorities), "--tls-auth-clients", "yes", "--tls-replication", "yes",
        "--tls-cluster", "yes", *options,
    ]  # fmt: skip


class TlsRedis:
    """A running server on 127.0.0.1."""

    def __init__(self, files: PemFiles, folder: Path, *options: str) -> None:
        """Raises TimeoutError when it does not answer."""
        self._kept = KeptPort(also=[CLUSTER_BUS])
        self.files, self.port = files, self._kept.number
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                arguments(files, self.port, folder, *options), stdout=log, stderr=log
            )
        wait_until(self.answers)

    def client(self) -> redis.Redis:
        """With the server's own certificate."""
        return _client(self.files, self.port)

    @contextmanager
    def plain_port(self) -> Iterator[int]:
        """A port of the same server without TLS, while inside."""
        kept = KeptPort()
        with self.client() as client:
            client.config_set("port", kept.number)
            yield kept.number
            client.config_set("port", 0)

    def answers(self) -> bool:
        with self.client() as client:
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                return False

    @contextmanager
    def changing(self) -> Iterator[None]:
        """What an operator of Redis does with a change of its files, which is made inside."""
        with self.client() as client:
            client.ping()
            yield
            client.config_set("tls-cert-file", str(self.files.certificate))

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def wait_until(condition: Callable[[], bool], timeout_s: float = READY_S) -> None:
    """Raises TimeoutError."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"not within {timeout_s} s: {condition}")
        time.sleep(0.02)


@contextmanager
def one_server(files: PemFiles, folder: Path, *options: str) -> Iterator[TlsRedis]:
    with _servers(files, folder, 1, options) as (server,):
        yield server


@contextmanager
def cluster(files: PemFiles, folder: Path) -> Iterator[str]:
    """A Redis Cluster of three masters while inside. Yields its URL without parameters."""
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "3000")
    with _servers(files, folder, 3, options) as nodes:
        for number, node in enumerate(nodes):
            with node.client() as client:
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                first, last = (SLOTS * step // 3 for step in (number, number + 1))
                client.execute_command("CLUSTER", "ADDSLOTS", *range(first, last))
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[0].port)
        wait_until(lambda: all(_is_whole(node) for node in nodes))
        yield "rediss+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes)


@contextmanager
def watched_master(files: PemFiles, folder: Path) -> Iterator[str]:
    """A master and the Sentinel that watches it while inside. Yields the URL without parameters."""
    with one_server(files, folder) as master, ExitStack() as stack:
        port = stack.enter_context(_kept_port())
        file = folder / "sentinel.conf"
        file.write_text(f"sentinel monitor cache 127.0.0.1 {master.port} 1\n", encoding="utf-8")
        # Only a file may say what is watched. The rest comes after it.
        command = arguments(files, port, folder)
        command = [command[0], str(file), *[part for part in command[1:] if part not in ("--save", "")]]
        with (folder / "sentinel.log").open("wb") as log:
            process = subprocess.Popen([*command, "--sentinel"], stdout=log, stderr=log)
        stack.callback(process.wait)
        stack.callback(process.kill)
        wait_until(lambda: _knows_master(files, port))
        yield f"rediss+sentinel://127.0.0.1:{port}/cache"


@contextmanager
def _servers(
    files: PemFiles, folder: Path, count: int, options: Sequence[str]
) -> Iterator[tuple[TlsRedis, ...]]:
    with ExitStack() as stack:
        started = []
        for number in range(count):
            server = TlsRedis(files, folder / str(number), *options)
            stack.callback(server.stop)
            started.append(server)
        yield tuple(started)


def _is_whole(node: TlsRedis) -> bool:
    with node.client() as client:
        return b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO", NEVER_DECODE=True)


@contextmanager
def _kept_port() -> Iterator[int]:
    kept = KeptPort()
    yield kept.number


def _client(files: PemFiles, port: int) -> redis.Redis:
    return redis.Redis(
        port=port,
        ssl=True,
        ssl_ca_certs=str(files.authorities),
        ssl_certfile=str(files.certificate),
        ssl_keyfile=str(files.key),
        protocol=2,
    )


def _knows_master(files: PemFiles, port: int) -> bool:
    with _client(files, port) as client:
        try:
            return bool(client.sentinel_masters()["cache"]["is_master"])
        except (redis.ConnectionError, LookupError):
            return False
