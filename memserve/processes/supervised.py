"""What loops for as long as its process lives: a task or a thread that goes on whatever its step raises, says
so, and is counted.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from memserve.errors import MemserveError

log = logging.getLogger("memserve.processes.supervised")

# Of a loop whose step fails again and again; its own pause where that is longer.
LONGEST_PAUSE_S = 5.0
# Of one loop, for each class of exception: a step that fails four times a second does not fill the disk with
# tracebacks.
SAY_EVERY_S = 60.0

T = TypeVar("T")
Failed = Callable[[str], None]
"""Called with a loop's name whenever its step has failed. Names are literals in the code, so they may label a
metric.
"""


def uncounted(loop: str) -> None:
    """For a process without metrics: the log has every failure anyway."""


async def repeat(
    loop: str, step: Callable[[], Awaitable[None]], pause_s: float, failed: Failed = uncounted
) -> None:
    """Take the step again and again, with a pause between. Only the task's own cancellation ends it.

    After failures in a row the pause doubles each time, up to LONGEST_PAUSE_S.
    """
    failures = _Failures(loop, pause_s, failed)
    task = asyncio.current_task()
    while True:
        try:
            await step()
            failures.ended()
        except asyncio.CancelledError as error:
            if task is None or task.cancelling():
                raise
            # Somebody has cancelled what the step waited for, not this task: gRPC does so to the calls of a
            # channel that closes.
            failures.met(error, time.monotonic())
        except Exception as error:
            failures.met(error, time.monotonic())
        await asyncio.sleep(failures.pause_s)


def repeating_thread(
    loop: str, step: Callable[[], None], pause_s: float, closing: threading.Event, failed: Failed = uncounted
) -> threading.Thread:
    """A daemon thread, already started, that does the same with a step that blocks. It ends with the step
    during which `closing` is set.
    """
    failures = _Failures(loop, pause_s, failed)

    def run() -> None:
        while not closing.is_set():
            try:
                step()
                failures.ended()
            except Exception as error:
                failures.met(error, time.monotonic())
            closing.wait(failures.pause_s)

    thread = threading.Thread(target=run, name=f"memserve_{loop}", daemon=True)
    thread.start()
    return thread


class Background:
    """Work that outlives the call that began it: kept until it ends, bounded in number, and said when it
    fails.
    """

    def __init__(self, most: int = 64) -> None:
        self._most = most
        self._tasks: set[asyncio.Task[Any]] = set()

    def begin(self, what: str, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """what: as the log names it. Whoever awaits the task gets what it raises; nobody has to."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(lambda ended: self._ended(what, ended))
        return task

    @property
    def is_full(self) -> bool:
        """Whether what can be left out is better left out."""
        return len(self._tasks) >= self._most

    async def close(self) -> None:
        """Cancel what has not ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, what: str, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, MemserveError):
            log.info("%s: %s", what, error)
        elif error is not None:
            log.error("%s failed", what, exc_info=error)


class _Failures:
    """The failures of one loop: how long to pause after them, and which are said."""

    def __init__(self, loop: str, pause_s: float, failed: Failed) -> None:
        self.pause_s = pause_s
        self._loop = loop
        self._least_pause_s = pause_s
        self._failed = failed
        self._unsaid = 0
        self._quiet_until_s: dict[type[BaseException], float] = {}

    def ended(self) -> None:
        """The step has not failed."""
        self.pause_s = self._least_pause_s

    def met(self, error: BaseException, now_s: float) -> None:
        self.pause_s = max(self._least_pause_s, min(2 * self.pause_s, LONGEST_PAUSE_S))
        self._failed(self._loop)
        self._unsaid += 1
        if now_s < self._quiet_until_s.get(type(error), now_s):
            return
        self._quiet_until_s[type(error)] = now_s + SAY_EVERY_S
        times = f", {self._unsaid} times since this was said last" if self._unsaid > 1 else ""
        self._unsaid = 0
        log.error("the loop %r failed%s; it goes on", self._loop, times, exc_info=error)
