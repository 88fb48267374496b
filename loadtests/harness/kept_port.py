"""A TCP port for a server that cannot choose a free port itself, such as Redis and LMCache.

The port is reserved before the server starts. It stays reserved for as long as the `KeptPort` exists.
"""

from __future__ import annotations

import socket
import weakref
from collections.abc import Sequence


class KeptPort:
    """A free port of 127.0.0.1 with a socket that is bound to it and never listens.

    The kernel gives a bound port to no other program that asks for a free port. Redis and LMCache set
    SO_REUSEADDR, so that they can listen on the port all the same.
    """

    def __init__(self, *, also: Sequence[int] = ()) -> None:
        """also: distances to further reserved ports, such as 10000 for the bus of a Redis Cluster."""
        while True:
            kept = [_bound(0)]
            self.number = int(kept[0].getsockname()[1])
            try:
                kept += [_bound(self.number + distance) for distance in also]
                break
            except (OSError, OverflowError):
                kept[0].close()
        for bound in kept:
            weakref.finalize(self, bound.close)


def _bound(port: int) -> socket.socket:
    kept = socket.socket()
    try:
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind(("127.0.0.1", port))
    except (OSError, OverflowError):
        kept.close()
        raise
    return kept
