"""Runs a process in an image as container runtimes do: its own process ids and mounts, process 1, a user
without rights, a read-only root. The network is a host's of `loadtests.cluster.hosts`.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loadtests.cluster.hosts import Host

# What Docker gives a container, if nobody says otherwise.
SHM_BYTES = 64 << 20
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
START_S = 10.0


@dataclass(frozen=True, slots=True)
class Volume:
    source: Path
    target: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Container:
    """What to run, and in what."""

    name: str
    """Of its host too."""
    root: Path
    command: tuple[str, ...]
    environment: Mapping[str, str]
    user: str
    """uid:gid"""
    folder: str = "/"
    volumes: tuple[Volume, ...] = ()
    tmpfs: Mapping[str, str] = field(default_factory=dict)
    """Options of mount, by target."""
    read_only: bool = True
    shm_bytes: int = SHM_BYTES

    def command_line(self) -> list[str]:
        """A command line of this machine, as root, in the network namespace that it is started in."""
        return [
            "unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child",
            "sh", "-c", "\n".join(self._script()),
        ]  # fmt: skip

    def inside(self, command: Sequence[str]) -> str:
        """The command as the container's user with the container's environment. For a shell in the root."""
        uid, gid = self.user.split(":")
        rights = f"--reuid={uid} --regid={gid} --clear-groups --inh-caps=-all --bounding-set=-all"
        variables = shlex.join(f"{name}={value}" for name, value in self.environment.items())
        return (
            f"cd {shlex.quote(self.folder)} && exec setpriv {rights} --no-new-privs env -i {variables} "
            f"{shlex.join(command)}"
        )

    def _script(self) -> list[str]:
        root = shlex.quote(str(self.root))
        lines = [
            "set -e",
            f"hostname {self.name}",
            "mount --make-rprivate /",
            f"mount --rbind {root} {root}",
            f"mount -t proc -o nosuid,nodev,noexec proc {root}/proc",
            f"mount -t sysfs -o ro,nosuid,nodev,noexec sysfs {root}/sys",
            f"mount -t tmpfs -o mode=755,nosuid tmpfs {root}/dev",
            f"mkdir {root}/dev/shm {root}/dev/pts",
            f"mount -t tmpfs -o mode=1777,nosuid,nodev,noexec,size={self.shm_bytes} tmpfs {root}/dev/shm",
            f"ln -s /proc/self/fd {root}/dev/fd",
        ]
        lines += [
            f"touch {root}/dev/{name} && mount --bind /dev/{name} {root}/dev/{name}" for name in DEVICES
        ]
        files = [Volume(Path("/etc") / name, f"/etc/{name}", True) for name in ("hosts", "resolv.conf")]
        for volume in (*files, *self.volumes):
            place, source = shlex.quote(f"{self.root}{volume.target}"), shlex.quote(str(volume.source))
            make = (
                f"mkdir -p {place}" if volume.source.is_dir() else f"mkdir -p $(dirname {place}); : >>{place}"
            )
            lines += [f"[ -e {place} ] || {{ {make}; }}", f"mount --bind {source} {place}"]
            if volume.read_only:
                lines.append(f"mount -o remount,bind,ro {place}")
        for target, options in self.tmpfs.items():
            place = shlex.quote(f"{self.root}{target}")
            lines += [f"mkdir -p {place}", f"mount -t tmpfs -o nosuid,nodev,{options} tmpfs {place}"]
        if self.read_only:
            lines.append(f"mount -o remount,bind,ro {root}")
        return [*lines, f"exec chroot {root} /bin/sh -c {shlex.quote(self.inside(self.command))}"]


class Running:
    """A container that was started on a host, and its log."""

    def __init__(self, container: Container, host: Host, log: Path) -> None:
        self.container, self.log = container, log
        with log.open("ab") as output:
            self.process = host.start(container.command_line(), output=output)
        self._host = host

    @property
    def pid(self) -> int:
        """Process 1, by its number on this machine. Raises RuntimeError where there is none."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        deadline_s = time.monotonic() + START_S
        while self.process.poll() is None and time.monotonic() < deadline_s:
            # `unshare` forks only when `ip netns exec` has become it.
            if pids := children.read_text(encoding="ascii").split():
                return int(pids[0])
            time.sleep(0.02)
        raise RuntimeError(f"not running: {self.said()[-2000:]}")

    def begun(self) -> None:
        """Wait until process 1 is the container's command: before, it mounts. Raises RuntimeError."""
        program = Path(f"/proc/{self.pid}/exe")
        deadline_s = time.monotonic() + START_S
        while program.readlink().name in ("dash", "sh", "setpriv", "env"):
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"it does not begin: {self.said()[-2000:]}")
            time.sleep(0.01)

    def execute(self, command: Sequence[str], timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run another command in the container, as `docker exec` does."""
        target = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--net", "--ipc", "--uts", "--root"]
        return subprocess.run(
            [*target, "/bin/sh", "-c", self.container.inside(command)],
            capture_output=True,
            encoding="utf-8",
            timeout=timeout_s,
            check=False,
        )

    def signal(self, number: signal.Signals) -> None:
        """As a container runtime does: to process 1 alone."""
        os.kill(self.pid, number)

    def end(self, within_s: float) -> tuple[int | None, float]:
        """Ask it to end. Returns its exit status, None where it had to be killed, and the seconds."""
        began_s = time.monotonic()
        self.signal(signal.SIGTERM)
        try:
            status: int | None = self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            status = None
        return status, time.monotonic() - began_s

    def zombies(self) -> int:
        """Processes of the container that have ended and that nobody has waited for."""
        shown = self.execute(["sh", "-c", "cat /proc/[0-9]*/stat 2>/dev/null; true"]).stdout
        return sum(line.rpartition(")")[2].split()[:1] == ["Z"] for line in shown.splitlines())

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")
