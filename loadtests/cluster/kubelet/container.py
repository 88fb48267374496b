"""A container as processes of this machine, in namespaces of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.cluster.kubelet.image import Image, Root, rights, root_script
from loadtests.cluster.kubelet.objects import Manifest, ManifestFault, Pod

_LOOK_S = 0.02
MADE_WITHIN_S = 20.0


@dataclass(frozen=True)
class Start:
    """All that a container is started with."""

    root: Root
    command: list[str]
    environment: Mapping[str, str]
    working_directory: str = "/"


def security_of(container: Manifest, pod: Pod, image: Image) -> tuple[int, int, tuple[str, ...] | None, bool]:
    """The user, the group, the capabilities left (None: the usual ones), and whether setuid programs count.

    Raises ManifestFault where the container may not run as root, and would.
    """
    of_pod = pod.spec.get("securityContext") or {}
    own = container.get("securityContext") or {}
    both = {**of_pod, **own}
    user = int(both.get("runAsUser", image.user))
    group = int(both.get("runAsGroup", image.group))
    if both.get("runAsNonRoot") and user == 0:
        raise ManifestFault(f"container {container['name']} must not run as root, and would")
    capabilities: tuple[str, ...] | None = None
    if wanted := own.get("capabilities"):
        if "ALL" not in (wanted.get("drop") or []):
            raise ManifestFault(f"container {container['name']}: no kubelet of ours drops less than ALL")
        capabilities = tuple(name.lower() for name in wanted.get("add") or [])
    return user, group, capabilities, bool(own.get("allowPrivilegeEscalation", True))


class Container:
    """One run of a container."""

    def __init__(self, name: str, namespace: str, start: Start, log: Path) -> None:
        """namespace: of the network, which the pod's containers share."""
        self.name = name
        self.started_s = 0.0
        self._namespace = namespace
        self._start = start
        self._log = log
        self._outer: subprocess.Popen[bytes] | None = None

    @property
    def _marker(self) -> Path:
        return self._start.root.folder.with_suffix(".made")

    @property
    def _process(self) -> subprocess.Popen[bytes]:
        assert self._outer is not None, "the container is not started"
        return self._outer

    def start(self) -> None:
        """Its command is process 1 of its own process namespace, as in a container."""
        root = self._start.root
        root.folder.mkdir(parents=True, exist_ok=True)
        script = root.folder.with_suffix(".sh")
        self._marker.write_bytes(b"")
        script.write_text(
            root_script(root, self._start.command, self._start.working_directory, self._marker),
            encoding="utf-8",
        )
        # `ip netns exec` becomes `unshare`, whose child is process 1.
        spaces = ["--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child=KILL"]
        command = ["ip", "netns", "exec", self._namespace, "unshare", *spaces, "sh", str(script)]
        with self._log.open("ab") as output:
            self._outer = subprocess.Popen(
                command,
                env={**self._start.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.started_s = time.monotonic()

    def status(self) -> int | None:
        """Its exit status; negative: the signal that ended it. None: it runs."""
        return self._process.poll()

    def signal(self, number: int) -> None:
        """Send a signal to its process 1."""
        pid = self._first_process()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended within the time."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """End it and all that it has started, at once."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        with contextlib.suppress(OSError):
            # The kernel ends the whole process namespace with its process 1.
            for pid in children.read_text(encoding="ascii").split():
                os.kill(int(pid), signal.SIGKILL)
        self._process.kill()
        self._process.wait()

    def execute(self, command: Sequence[str], timeout_s: float) -> int:
        """Run a command in the container. Returns its exit status. Raises subprocess.TimeoutExpired."""
        pid = self._first_process()
        if pid is None:
            return 137
        inside = [
            "nsenter",
            f"--target={pid}",
            "--mount",
            "--pid",
            "--net",
            "--uts",
            "--ipc",
            "--root",
            "--wd",
        ]
        with self._log.open("ab") as output:
            return subprocess.run(
                [*inside, *rights(self._start.root), "--", *command],
                env={**self._start.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=timeout_s,
            ).returncode

    def _first_process(self) -> int | None:
        """This machine's id of the container's process 1, once its root is made. None: it has ended."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        deadline_s = time.monotonic() + MADE_WITHIN_S
        while self._process.poll() is None and time.monotonic() < deadline_s:
            if self._marker.stat().st_size:
                pids = children.read_text(encoding="ascii").split()
                return int(pids[0]) if pids else None
            time.sleep(_LOOK_S)
        return None
