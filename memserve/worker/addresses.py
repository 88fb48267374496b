"""The ports that a worker listens on, and the addresses by which others reach them."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Callable, Iterator
from typing import TypeVar

from memserve.config import Settings, at
from memserve.errors import StartupError

PORTS_TRIED = 64
WILDCARDS = ("0.0.0.0", "::", "[::]")
Bound = TypeVar("Bound")


def ports_from(first: int, *, without: int = 0) -> Iterator[int]:
    """The ports that workers of one machine try, in this order. first: 0 for any free port.

    without: a port that something else of the machine listens on.
    """
    if not first:
        yield 0
        return
    yield from (port for port in range(first, min(first + PORTS_TRIED, 65536)) if port != without)


def bound_to_first(ports: Iterator[int], bind: Callable[[int], Bound], setting: str) -> Bound:
    """What `bind` returns for the first port that it can have. It raises OSError or RuntimeError for others.

    Raises StartupError that names the setting.
    """
    refusal: Exception | None = None
    for port in ports:
        try:
            return bind(port)
        except (OSError, RuntimeError) as error:
            refusal = error
    raise StartupError(f"no port that the workers may listen on is free (setting {setting}): {refusal}")


def check_free(host: str, port: int) -> int:
    """The port, where nothing listens on it, not even a socket that would share it. Raises OSError."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
    return port


def reachable(address: str, settings: Settings, node: str) -> str:
    """host:port for others, of a worker that listens on `address`.

    Where it listens on every address, that is `worker_address`, else the node's address in Ray's cluster.

    node: as Ray knows it. Of a Ray that keeps to loopback, the machine's name is looked up instead.
    """
    host, _, port = address.rpartition(":")
    if host not in WILDCARDS:
        return address
    known = settings.worker_address or ("" if _is_loopback(node) else node)
    return at(known or socket.gethostbyname(socket.gethostname()), int(port))


def own_address(toward: str) -> str:
    """This machine's address, as a host that it dials sees it. Nothing is sent. Raises StartupError.

    toward: host:port; empty for a host outside.
    """
    host, _, port = toward.rpartition(":")
    # Any address outside will do: the kernel only looks for the way to it.
    target = (host.strip("[]"), int(port)) if host else ("8.8.8.8", 53)
    with contextlib.suppress(OSError):
        family, kind, number, _, place = socket.getaddrinfo(*target, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, number) as probe:
            probe.connect(place)
            return str(probe.getsockname()[0])
    with contextlib.suppress(OSError):
        return socket.gethostbyname(socket.gethostname())
    raise StartupError("this machine's address is not known: set worker_address")


def _is_loopback(node: str) -> bool:
    try:
        return not node or ipaddress.ip_address(node).is_loopback
    except ValueError:
        return False
