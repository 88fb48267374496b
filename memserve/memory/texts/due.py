"""When Milvus is flushed."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FlushPolicy:
    """When Milvus is flushed: at the first of the three."""

    rows: int = 2048
    """So many writes wait."""
    quiet_s: float = 5.0
    """No call came for so long."""
    within_s: float = 60.0
    """The oldest write has waited so long."""


class FlushClock:
    """Wakes who flushes. It belongs to one event loop."""

    def __init__(self, policy: FlushPolicy) -> None:
        self.policy = policy
        self._due = asyncio.Event()
        self._flush_due = asyncio.Event()
        self._rest_until_s = 0.0

    def wake(self) -> None:
        """There is something to flush, when it is time."""
        self._due.set()

    def flush_now(self) -> None:
        """It is time."""
        self._due.set()
        self._flush_due.set()

    def rest(self, for_s: float) -> None:
        """Let a flush wait so long: what is left is too young to be settled."""
        self._rest_until_s = time.monotonic() + for_s

    async def wait(
        self, waiting: Callable[[], int], last_call_s: Callable[[], float], *, at_latest_s: float | None
    ) -> None:
        """Wait until a flush is due.

        waiting: how many writes wait. last_call_s: when the last call came, on the monotonic clock.
        at_latest_s: return by then all the same, on the monotonic clock. None: only when something waits.
        """
        await asyncio.sleep(max(0.0, self._rest_until_s - time.monotonic()))
        waits_s = None if at_latest_s is None else max(0.0, at_latest_s - time.monotonic())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(waits_s):
                await self._due.wait()
        flush_by_s = time.monotonic() + self.policy.within_s
        while waiting() and not self._flush_due.is_set():
            due_s = min(last_call_s() + self.policy.quiet_s, flush_by_s)
            if due_s <= time.monotonic():
                break
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(due_s - time.monotonic()):
                    await self._flush_due.wait()
        self._due.clear()
        self._flush_due.clear()
