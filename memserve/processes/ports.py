"""TCP ports that are kept from before anything slow is started until everything has ended.

1. A socket that is bound and never listens keeps a port.
2. The gateway may be started several times. It listens on the same port, beside that socket.
3. Both set SO_REUSEPORT. The kernel allows that between processes of one user only. Other processes are
   refused.
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
    """Keep the ports of the gateway while inside. Meanwhile `ports_file` has their numbers.

    Yields the settings, with the number of the port wherever a port was 0. Raises StartupError when a port is
    taken, OSError when the file cannot be written.
    """
    with contextlib.ExitStack() as held:
        port = held.enter_context(_hold(settings.host, settings.port, "port"))
        taken = {"port": port}
        if settings.http:
            taken["http_port"] = held.enter_context(_hold(settings.host, settings.http_port, "http_port"))
        if settings.metrics:
            taken["metrics_port"] = held.enter_context(
                _hold(settings.metrics_host, settings.metrics_port, "metrics_port")
            )
        if settings.health_port:
            held.enter_context(_hold(settings.host, settings.health_port, "health_port"))
        file = ports_file(settings.data, os.getpid())
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(file, json.dumps(taken).encode())
        try:
            yield settings.model_copy(update=taken)
        finally:
            file.unlink(missing_ok=True)


def ports_file(data: Path, pid: int) -> Path:
    """Where the process that took the ports says which ports they are: JSON, by the names of the settings.

    That process is `memserve up`, or a gateway on its own.
    """
    return data / "run" / f"ports-{pid}.json"


def taken_ports(data: Path, pid: int) -> dict[str, int] | None:
    """The ports that the process took, by setting. None: the process has not taken them yet."""
    try:
        ports: dict[str, int] = json.loads(ports_file(data, pid).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return ports


@contextlib.contextmanager
def _hold(host: str, port: int, setting: str) -> Iterator[int]:
    """Keep one port. Yields its number. Raises StartupError.

    port: 0 for any free port.
    """
    with contextlib.closing(_keeper(host, port, setting)) as keeper:
        yield int(keeper.getsockname()[1])


def _keeper(host: str, port: int, setting: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    keeper = socket.socket(family)
    try:
        with socket.socket(family) as probe:
            # Without SO_REUSEPORT, a port that another memserve of this user keeps counts as taken. With
            # SO_REUSEADDR, connections of a server that has ended do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
        # Without SO_REUSEADDR: it would let in other processes that set it.
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
