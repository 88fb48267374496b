"""How long the cache's servers may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLimits:
    """How long one Redis server may take, and when it is given up."""

    io_s: float = 0.5
    """Each read or write on the socket of a load or a store."""
    lookup_s: float = 0.1
    """A look-up. Every request waits for a look-up, so that it has less time than a load."""
    connect_s: float = 0.5
    """A new connection, and each answer about which servers there are."""
    failures_to_open: int = 2
    """Failures in a row after which the server is not asked for a while: its circuit opens."""
    pause_s: float = 1.0
    """The time from one trial of a server that does not answer to the next. Also the least time from one
    question about the topology to the next."""


WORKER_LIMITS = CacheLimits()
"""For loads and stores of an engine's KV, which requests wait for."""
