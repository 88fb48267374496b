"""Keeps the private registry alive on a full disk.

A redis-server with `appendfsync always` ends at the first write that its file does not take. So the guard
acts before the disk is full:

1. It makes the registry refuse writes, as a master without enough replicas does (NOREPLICAS). Reads go on.
2. It makes the registry close its file. The file is then complete: it has all acknowledged writes. A registry
   that is killed meanwhile reads it again.
3. When the disk has room again, the file is written anew. Only then does the registry take writes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from memserve.embedded.part import Report
from memserve.processes.supervised import repeating_thread

LOOK_EVERY_S = 0.25
# As shares of the room that is held back: writes end below the first, and begin again above the second.
CLOSE_BELOW = 0.5
OPEN_ABOVE = 0.75
REWRITE_TIMEOUT_S = 120.0
ANSWER_TIMEOUT_S = 5.0


class RegistryGuard:
    """Watches the registry's disk. It keeps no state: Redis's settings say whether writes are refused."""

    def __init__(self, redis_url: str, room: Callable[[], float], report: Report) -> None:
        """room: the free room of the registry's disk, as a multiple of the room that is held back."""
        self._redis_url = redis_url
        self._room = room
        self._report = report
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = repeating_thread("registry_guard", self.step, LOOK_EVERY_S, self._closing)

    def stop(self) -> None:
        self._closing.set()
        if self._thread is not None:
            self._thread.join(ANSWER_TIMEOUT_S)

    def step(self) -> None:
        """Look once, and act.

        A registry that does not answer is left alone: its supervision takes care of it.
        """
        share = self._room()
        once = Retry(NoBackoff(), 0)
        with redis.Redis.from_url(
            self._redis_url, socket_timeout=ANSWER_TIMEOUT_S, retry=once, decode_responses=True
        ) as client:
            try:
                refuses = client.config_get("min-replicas-to-write")["min-replicas-to-write"] != "0"
                if share < CLOSE_BELOW and not refuses:
                    self._refuse_writes(client)
                elif share > OPEN_ABOVE and refuses:
                    self._take_writes(client)
            except redis.RedisError:
                return

    def _refuse_writes(self, client: redis.Redis) -> None:
        client.config_set("min-replicas-to-write", 1)
        client.config_set("appendonly", "no")
        self._report(
            "disk       nearly full: the registry refuses changes until there is room; reads and answers go "
            "on"
        )

    def _take_writes(self, client: redis.Redis) -> None:
        """Raises redis.RedisError. The next step then tries again."""
        client.config_set("appendonly", "yes")
        if not _until(lambda: _file_is_written(client), REWRITE_TIMEOUT_S, self._closing):
            client.config_set("appendonly", "no")
            return
        client.config_set("min-replicas-to-write", 0)
        self._report("disk       there is room again: the registry takes changes")


def _file_is_written(client: redis.Redis) -> bool:
    now = client.info("persistence")
    under_way = now["aof_rewrite_in_progress"] or now["aof_rewrite_scheduled"]
    return bool(now["aof_enabled"]) and not under_way and now["aof_last_bgrewrite_status"] == "ok"


def _until(condition: Callable[[], bool], timeout_s: float, closing: threading.Event) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s and not closing.is_set():
        if condition():
            return True
        closing.wait(0.05)
    return False
