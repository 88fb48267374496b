"""The values of the ledger's chunks, which lie on every server of the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from memserve.kv.keys import VALUE_PREFIX
from memserve.kv.transport.servers import CacheServers


class ChunkValues:
    """Commands on values, in one round trip to every server. Raises redis-py's RedisError or OSError."""

    def __init__(self, servers: CacheServers) -> None:
        self._servers = servers

    def exist(self, members: Sequence[str]) -> list[bool]:
        return [bool(count) for count in self._each(members, lambda pipeline, name, _: pipeline.exists(name))]

    def unlink(self, members: Sequence[str]) -> None:
        self._each(members, lambda pipeline, name, _: pipeline.unlink(name))

    def prolong(self, lives_s: Sequence[tuple[str, int]]) -> None:
        """Set the time to live of each member's value."""
        self._each(
            [member for member, _ in lives_s],
            lambda pipeline, name, number: pipeline.expire(name, lives_s[number][1]),
        )

    def _each(self, members: Sequence[str], command: Callable[[Any, str, int], object]) -> list[Any]:
        """`command` gets the pipeline, the name of a value, and the member's number."""
        names = [VALUE_PREFIX + member for member in members]
        return self._servers.ask_each(
            names, lambda pipeline, number: command(pipeline, names[number], number)
        )
