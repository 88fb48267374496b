"""Keeps the cache: removes what has fallen due, and finds what Redis has evicted itself. One worker at a time
does it for all.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable

from redis.exceptions import RedisError

from memserve.kv.ledger.ledger import PAGE, Ledger
from memserve.kv.ledger.records import Removal, Settled
from memserve.processes.supervised import Failed, repeating_thread, uncounted

log = logging.getLogger("memserve.kv.ledger.upkeep")

INTERVAL_S = 5.0
PAGES_IN_A_TURN = 20


class Upkeep:
    """A thread that takes a turn every `interval_s`, unless another worker has taken it. While Redis does not
    answer, turns are missed.
    """

    def __init__(
        self,
        ledger: Ledger,
        on_removed: Callable[[Removal, int], None],
        *,
        interval_s: float = INTERVAL_S,
        failed: Failed = uncounted,
    ) -> None:
        """on_removed: called on the thread with a reason and a number of chunks."""
        self._ledger = ledger
        self._on_removed = on_removed
        self.counted_bytes: int | None = None
        """Of all tenants, when last asked. None before."""
        self._interval_s = interval_s
        self._cursor = 0
        self._closing = threading.Event()
        self._thread = repeating_thread("kv_upkeep", self._run, interval_s, self._closing, failed)

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self.counted_bytes = self._ledger.usage().stored_bytes
            if self._ledger.take_turn(self._interval_s):
                self._take_turn()
        except (RedisError, OSError) as error:
            log.debug("a turn of the cache's upkeep was missed: %s", error)

    def _take_turn(self) -> None:
        for _ in range(PAGES_IN_A_TURN):
            due = self._ledger.due()
            self._ledger.remove_values([entry for entry, _ in due])
            self._report(reason for _, reason in due)
            if len(due) < PAGE or self._closing.is_set():
                break
        self._cursor, vanished = self._ledger.vanished(self._cursor)
        self._ledger.settle((Settled.GONE, entry) for entry in vanished)
        self._report(Removal.VANISHED for _ in vanished)

    def _report(self, reasons: Iterable[Removal]) -> None:
        for reason, chunks in Counter(reasons).items():
            self._on_removed(reason, chunks)
