"""Exchanges of the chunk store with the servers of the cache. Whatever a server does ends in a count."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager

from redis.exceptions import RedisError

from memserve.kv.outcomes import LiveStats
from memserve.kv.transport.breaker import Circuit
from memserve.kv.transport.resp import ProtocolError
from memserve.kv.transport.server import CacheServer, Question
from memserve.kv.transport.servers import CacheServers
from memserve.kv.transport.wire import Wire

Command = tuple[str | int, ...]
Groups = Mapping[CacheServer, Sequence[int]]
"""By server, the numbers of the names that it holds."""


class Exchange:
    """Which server is asked, for how long, and what it means when it does not answer. Thread-safe."""

    def __init__(self, servers: CacheServers, stats: LiveStats) -> None:
        self._servers = servers
        self._stats = stats

    def groups(self, names: Sequence[str], wait_s: float) -> Groups:
        """The numbers of the names that each server holds. Names that no known server holds are left out, and
        counted.
        """
        groups = self._servers.groups(names, wait_s)
        if sum(map(len, groups.values())) < len(names):
            with self._stats.counting() as stats:
                stats.skipped += 1
        return groups

    def ask(
        self, groups: Groups, commands: Sequence[Command], *, timeout_s: float, lookup: bool = False
    ) -> list[int | None]:
        """Send every server its commands, and only then read the answers: together they take as long as the
        slowest.

        commands: one for each name that was grouped, with a number for an answer. lookup: over the
        connections for look-ups. Returns the numbers; None where none came.
        """
        deadline_s = time.monotonic() + timeout_s
        asked: list[tuple[CacheServer, Sequence[int], Question]] = []
        for server, numbers in groups.items():
            # Connecting to some may have taken all the time; the others are not to blame.
            if time.monotonic() < deadline_s and self._is_allowed(server):
                client = server.lookup_client if lookup else server.client
                own_commands = [commands[number] for number in numbers]
                try:
                    asked.append((server, numbers, Question(client.connection_pool, own_commands)))
                except (RedisError, OSError):
                    self._count_failure(server)
        answers: list[int | None] = [None] * len(commands)
        for server, numbers, question in asked:
            try:
                replies = question.answers(deadline_s)
            except (RedisError, OSError):
                self._count_failure(server)
                continue
            server.answered(replies)
            for number, reply in zip(numbers, replies, strict=True):
                answers[number] = reply if isinstance(reply, int) else None
            if not all(isinstance(reply, int) for reply in replies):  # Redis lives and says no
                with self._stats.counting() as stats:
                    stats.unanswered += 1
        return answers

    @contextmanager
    def wire(self, server: CacheServer, values: Sized, deadline_s: float) -> Iterator[Wire | None]:
        """A connection for these large values of one server. What Redis does to it ends the block, and is
        counted.

        None without values, while the circuit is open, or when other servers have taken all the time.
        """
        if not len(values) or time.monotonic() >= deadline_s or not self._is_allowed(server):
            yield None
            return
        try:
            wire = server.take_wire()
        except (RedisError, OSError):
            self._count_failure(server)
            yield None
            return
        try:
            yield wire
        except (RedisError, OSError, ProtocolError):
            wire.close()
            self._count_failure(server)
            return
        except BaseException:
            wire.close()
            raise
        server.answered()
        server.give_back(wire)

    def _is_allowed(self, server: CacheServer) -> bool:
        if server.circuit is Circuit.CLOSED:
            return True
        with self._stats.counting() as stats:
            stats.skipped += 1
        return False

    def _count_failure(self, server: CacheServer) -> None:
        is_opened = server.failed()
        with self._stats.counting() as stats:
            stats.unanswered += 1
            stats.circuit_opened += is_opened
