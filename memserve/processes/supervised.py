"""Loops that run as long as their process lives.

A task or a thread takes a step again and again. It goes on whatever the step raises. Every failure is logged
and counted.
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

# The longest pause of a loop whose step fails again and again. A loop's own pause counts where it is longer.
LONGEST_PAUSE_S = 5.0
# How often a loop's failures are logged, for each class of exception. A step that fails four times a second
# must not fill the disk with tracebacks.
LOG_EVERY_S = 60.0

T = TypeVar("T")
Failed = Callable[[str], None]
"""Called with a loop's name whenever its step has failed. Names are literals in the code, so that they may
label a metric."""


def uncounted(loop: str) -> None:
    """For a process without metrics, whose failures are only logged."""


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
            # Not this task was cancelled, but the call that the step waited for. gRPC cancels the calls of a
            # channel that closes.
            failures.met(error, time.monotonic())
        except Exception as error:
            failures.met(error, time.monotonic())
        await asyncio.sleep(failures.pause_s)


def repeating_thread(
    loop: str, step: Callable[[], None], pause_s: float, closing: threading.Event, failed: Failed = uncounted
) -> threading.Thread:
    """As `repeat`, for a step that blocks. Returns a daemon thread that has started.

    The thread ends after the step during which `closing` is set.
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
    """Work that outlives the call that began it. It is kept until it ends, and logged when it fails."""

    def __init__(self, max_tasks: int = 64) -> None:
        self._max_tasks = max_tasks
        self._tasks: set[asyncio.Task[Any]] = set()

    def begin(self, what: str, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begin the work. A caller may await the task, and gets what it raises. Nobody has to await it.

        what: as the log names it.
        """
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(lambda ended: self._ended(what, ended))
        return task

    @property
    def is_full(self) -> bool:
        """Whether work that can be left out is better left out."""
        return len(self._tasks) >= self._max_tasks

    async def close(self) -> None:
        """Cancel the work that has not ended."""
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
    """The failures of one loop: how long to pause after them, and which are logged."""

    def __init__(self, loop: str, pause_s: float, failed: Failed) -> None:
        self.pause_s = pause_s
        self._loop = loop
        self._least_pause_s = pause_s
        self._failed = failed
        self._unlogged = 0
        self._quiet_until_s: dict[type[BaseException], float] = {}

    def ended(self) -> None:
        """The step has not failed."""
        self.pause_s = self._least_pause_s

    def met(self, error: BaseException, now_s: float) -> None:
        self.pause_s = max(self._least_pause_s, min(2 * self.pause_s, LONGEST_PAUSE_S))
        self._failed(self._loop)
        self._unlogged += 1
        if now_s < self._quiet_until_s.get(type(error), now_s):
            return
        self._quiet_until_s[type(error)] = now_s + LOG_EVERY_S
        times = f", {self._unlogged} times since this was said last" if self._unlogged > 1 else ""
        self._unlogged = 0
        if isinstance(error, MemserveError):
            # Such as a registry that does not answer: the message says all.
            log.warning("the loop %r could not do its work%s; it goes on: %s", self._loop, times, error)
            return
        log.error("the loop %r failed%s; it goes on", self._loop, times, exc_info=error)
