"""A circuit breaker: stop asking a server that does not answer, and ask again after a pause."""

from __future__ import annotations

import threading
from enum import Enum


class Circuit(Enum):
    """Whether a server is asked. A higher value is worse."""

    CLOSED = 0
    """Calls pass."""
    TRYING = 1
    """One call is under way to see whether the server is back."""
    OPEN = 2
    """No call passes."""


class CircuitBreaker:
    """Opens after `failures_to_open` failures in a row. Lets one call through after `pause_s`.

    The clock is an argument. Thread-safe.
    """

    def __init__(self, *, failures_to_open: int, pause_s: float) -> None:
        if failures_to_open < 1 or pause_s < 0:
            raise ValueError(f"failures_to_open={failures_to_open}, pause_s={pause_s}")
        self._failures_to_open = failures_to_open
        self._pause_s = pause_s
        self._lock = threading.Lock()
        self._state = Circuit.CLOSED
        self._failures = 0
        self._asked_s = 0.0

    @property
    def state(self) -> Circuit:
        return self._state

    def allows(self, now_s: float) -> bool:
        """Whether to make the call. After True the caller reports `succeeded` or `failed`.

        A trial that never reports is given up after `pause_s`.
        """
        with self._lock:
            if self._state is Circuit.CLOSED:
                return True
            if now_s - self._asked_s < self._pause_s:
                return False
            self._state = Circuit.TRYING
            self._asked_s = now_s
            return True

    def succeeded(self) -> None:
        with self._lock:
            self._state = Circuit.CLOSED
            self._failures = 0

    def failed(self, now_s: float) -> bool:
        """Returns True when this failure opened a closed circuit."""
        with self._lock:
            self._failures += 1
            if self._state is Circuit.CLOSED and self._failures < self._failures_to_open:
                return False
            opened = self._state is Circuit.CLOSED
            self._state = Circuit.OPEN
            self._asked_s = now_s
            return opened
