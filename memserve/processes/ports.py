"""TCP ports that are taken first and kept, from before anything slow is started until everything has ended.

A port is kept by a socket that is bound and never listens. The gateway, started as often as need be, listens
on the same port beside it: both set SO_REUSEPORT, which the kernel allows between processes of one user only.
Whoever does not set it is refused.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from memserve.config import Settings, at
from memserve.errors import StartupError
from memserve.private_files import write_private


@contextlib.contextmanager
def held_ports(settings: Settings) -> Iterator[Settings]:
    """Keep the ports of the gateway while inside. Yields the settings with the numbers that were taken where
    a port was 0.

    The numbers stand in `ports_file` meanwhile. Raises StartupError when a port is taken, OSError when the
    file cannot be written.
    """
    with contextlib.ExitStack() as held:
        port = held.enter_context(_hold(settings.host, settings.port, "port"))
        taken = {"port": port}
        if settings.metrics:
            taken["metrics_port"] = held.enter_context(
                _hold(settings.metrics_host, settings.metrics_port, "metrics_port")
            )
        file = ports_file(settings.data, os.getpid())
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(file, json.dumps(taken).encode())
        try:
            yield settings.model_copy(update=taken)
        finally:
            file.unlink(missing_ok=True)


def ports_file(data: Path, pid: int) -> Path:
    """Where the process that took the ports (`memserve up`, or a gateway on its own) says which: JSON, by the
    names of the settings.
    """
    return data / "run" / f"ports-{pid}.json"


def taken_ports(data: Path, pid: int) -> dict[str, int] | None:
    """Setting to port, as that process took them. None while it has not."""
    try:
        ports: dict[str, int] = json.loads(ports_file(data, pid).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return ports


@contextlib.contextmanager
def _hold(host: str, port: int, setting: str) -> Iterator[int]:
    """Keep one port; 0: any that is free. Yields its number. Raises StartupError."""
    with contextlib.closing(_keeper(host, port, setting)) as keeper:
        yield int(keeper.getsockname()[1])


def _keeper(host: str, port: int, setting: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    keeper = socket.socket(family)
    try:
        with socket.socket(family) as probe:
            # Without SO_REUSEPORT: also a port that another memserve of this user keeps counts as taken. With
            # SO_REUSEADDR: connections of a server that has ended do not.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
        # Without SO_REUSEADDR, which would let others in that set it.
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        keeper.bind((host, port))
    except OSError as error:
        keeper.close()
        if error.errno == errno.EADDRINUSE:
            raise StartupError(
                f"port {port} on {host} is in use; stop what listens there or choose another {setting}"
            ) from None
        raise StartupError(
            f"cannot listen on {at(host, port)}: {error.strerror} (settings host, {setting})"
        ) from None
    return keeper
