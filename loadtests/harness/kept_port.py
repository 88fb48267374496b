"""A TCP port for a server that cannot be told to take any (Redis, LMCache): taken first, and kept while
anybody has the `KeptPort`.
"""

from __future__ import annotations

import socket
import weakref
from collections.abc import Sequence


class KeptPort:
    """Bound on 127.0.0.1 and never listening: no one gets it by chance, and a server that sets SO_REUSEADDR,
    as they do, listens beside it.

    also: distances to ports that are taken along, such as 10000 for the bus of a Redis Cluster.
    """

    def __init__(self, *, also: Sequence[int] = ()) -> None:
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
