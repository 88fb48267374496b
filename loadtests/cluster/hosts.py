"""Several hosts on one machine: network namespaces that a bridge joins. Linux, as root, with iproute2."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

ENDING_S = 10.0
NAMES = Path("/etc/netns")


class HostsError(Exception):
    """This machine cannot be several hosts. The text says what is missing."""


class Host:
    """A host of a `Network`: interfaces, ports and names of its own; the file system is the machine's."""

    def __init__(self, name: str, namespace: str, address: str, router: str) -> None:
        self.name = name
        self.namespace = namespace
        self.address = address
        self._router = router
        self._processes: list[subprocess.Popen[bytes]] = []

    def command(self, arguments: Sequence[str | Path]) -> list[str]:
        """A command line of this machine that runs the arguments on the host."""
        return ["ip", "netns", "exec", self.namespace, *map(str, arguments)]

    def start(
        self,
        arguments: Sequence[str | Path],
        *,
        environment: Mapping[str, str] | None = None,
        output: IO[bytes] | int | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a process of the host, in a session of its own. The network ends it, if nobody else does.

        environment: the whole of it; None for this process's own.
        output: takes standard output and error.
        """
        process = subprocess.Popen(
            self.command(arguments), env=environment, stdout=output, stderr=output, start_new_session=True
        )
        self._processes.append(process)
        return process

    def run(self, arguments: Sequence[str | Path], timeout_s: float = 60.0) -> str:
        """Returns what it printed. Raises subprocess.CalledProcessError and subprocess.TimeoutExpired."""
        return _run(*self.command(arguments), timeout_s=timeout_s)

    def cut(self) -> None:
        """Take the host's link down. What it sends to itself still arrives."""
        _run("ip", "-n", self.namespace, "link", "set", "eth0", "down")

    def mend(self) -> None:
        """Bring the link up again."""
        _run("ip", "-n", self.namespace, "link", "set", "eth0", "up")
        # The kernel takes routes away with the link.
        _run("ip", "-n", self.namespace, "route", "replace", "default", "via", self._router)

    def listening(self) -> set[tuple[str, int]]:
        """(address, port) of every TCP socket that listens on the host."""
        rows = self.run(["ss", "--tcp", "--listening", "--numeric", "--no-header"]).splitlines()
        pairs = [row.split()[3].rsplit(":", 1) for row in rows]
        return {(address.strip("[]").partition("%")[0], int(port)) for address, port in pairs}

    def listening_beyond_loopback(self) -> set[tuple[str, int]]:
        """Those of `listening` that other hosts may reach."""
        return {(address, port) for address, port in self.listening() if not is_loopback(address)}

    def processes(self) -> set[int]:
        """The ids of all processes on the host, whoever started them."""
        return {int(pid) for pid in _run("ip", "netns", "pids", self.namespace).split()}

    def end(self) -> None:
        """End every process on the host: SIGTERM to those that were started here, then SIGKILL to all."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(ENDING_S)
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._processes:
            process.wait()


def is_loopback(address: str) -> bool:
    """Whether only the host itself reaches a socket there. `*` is every address, as ss writes it."""
    # gRPC's sockets are of IPv6, where 127.0.0.1 is ::ffff:127.0.0.1.
    return address != "*" and ipaddress.ip_address(address.removeprefix("::ffff:")).is_loopback


class Network:
    """Hosts that reach each other, and that this machine reaches, by address and by name."""

    def __init__(self, name: str, number: int = 77) -> None:
        """name: at most 6 letters, unlike that of any other network on this machine.

        number: of the network 10.<number>.0.0/24, in which this machine is 10.<number>.0.1.
        """
        self.name = name
        self.address = f"10.{number}.0.1"
        self.hosts: dict[str, Host] = {}
        self._bridge = f"{name}-br"
        self._number = number
        self._place = 10

    def open(self) -> None:
        """Raises HostsError."""
        if os.geteuid() != 0 or shutil.which("ip") is None:
            raise HostsError("several hosts on one machine need root and iproute2 (`ip`)")
        self._remove()
        _run("ip", "link", "add", self._bridge, "type", "bridge")
        _run("ip", "address", "add", f"{self.address}/24", "dev", self._bridge)
        _run("ip", "link", "set", self._bridge, "up")

    def host(self, name: str) -> Host:
        """Add a host. Every host knows the names of those that were added before the process started."""
        number = self._next_place()
        host = Host(name, f"{self.name}-{name}", f"10.{self._number}.0.{number}", self.address)
        outer = f"{self.name}-v{number}"
        _run("ip", "netns", "add", host.namespace)
        _run("ip", "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
        _run("ip", "link", "set", outer, "master", self._bridge, "up")
        inside = ("ip", "-n", host.namespace)
        _run(*inside, "address", "add", f"{host.address}/24", "dev", "eth0")
        _run(*inside, "link", "set", "lo", "up")
        host.mend()
        self.hosts[name] = host
        self._write_names()
        return host

    def remove(self, host: Host) -> None:
        """End all processes on a host, and take it away."""
        host.end()
        del self.hosts[host.name]
        _run("ip", "netns", "delete", host.namespace)
        shutil.rmtree(NAMES / host.namespace, ignore_errors=True)
        self._write_names()

    def close(self) -> None:
        """End all processes on all hosts, and remove the hosts."""
        for host in self.hosts.values():
            host.end()
        self._remove()
        self.hosts.clear()

    def _next_place(self) -> int:
        """The last byte of a new host's address: the one that was free for the longest time."""
        taken = {int(host.address.rpartition(".")[2]) for host in self.hosts.values()}
        free = [place for place in range(11, 255) if place not in taken]
        if not free:
            raise HostsError("a network has at most 244 hosts")
        self._place = next((place for place in free if place > self._place), free[0])
        return self._place

    def _write_names(self) -> None:
        """`ip netns exec` puts each host's files in the place of those in /etc."""
        lines = ["127.0.0.1 localhost", *(f"{host.address} {host.name}" for host in self.hosts.values())]
        for host in self.hosts.values():
            folder = NAMES / host.namespace
            folder.mkdir(parents=True, exist_ok=True)
            # Written in place: processes that run have this very file mounted.
            (folder / "hosts").write_text("\n".join(lines) + "\n", encoding="utf-8")
            # No name server: at once, since nothing listens there.
            (folder / "resolv.conf").write_text("nameserver 127.0.0.1\n", encoding="utf-8")

    def _remove(self) -> None:
        """Also what a network of this name left behind that was killed."""
        names = [line.split()[0] for line in _run("ip", "netns", "list").splitlines() if line.strip()]
        for namespace in [name for name in names if name.startswith(f"{self.name}-")]:
            for pid in _run("ip", "netns", "pids", namespace).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            _run("ip", "netns", "delete", namespace)
            shutil.rmtree(NAMES / namespace, ignore_errors=True)
        # Connections that were not closed keep a namespace, and with it the links, for a while.
        links = [
            row.split()[1].partition("@")[0].rstrip(":") for row in _run("ip", "-o", "link").splitlines()
        ]
        for link in [link for link in links if link.startswith((f"{self.name}-v", self._bridge))]:
            with contextlib.suppress(subprocess.CalledProcessError):
                _run("ip", "link", "delete", link)


@contextlib.contextmanager
def network(name: str, number: int = 77) -> Iterator[Network]:
    """A network while inside. Raises HostsError."""
    hosts = Network(name, number)
    hosts.open()
    try:
        yield hosts
    finally:
        hosts.close()


def _run(*command: str, timeout_s: float = 60.0) -> str:
    return subprocess.run(
        command, check=True, capture_output=True, encoding="utf-8", timeout=timeout_s
    ).stdout
