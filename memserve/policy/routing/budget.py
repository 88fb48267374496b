"""How many requests may be tried again on another worker. The clock is an argument."""

from __future__ import annotations

PART = 0.25
"""Of the requests, when all is well for a while."""
LEAST_PER_S = 1.0
MOST = 50.0


class RetryBudget:
    """When workers fail one after the other, the retries must not be what ends the next.

    Source: the retry budget of Finagle and Envoy.
    """

    def __init__(self) -> None:
        self._left = MOST
        self._at_s = 0.0

    def request(self) -> None:
        """A request has come."""
        self._left = min(self._left + PART, MOST)

    def spend(self, now_s: float) -> bool:
        """Whether a request may be tried again now. It then counts."""
        self._left = min(self._left + LEAST_PER_S * max(now_s - self._at_s, 0.0), MOST)
        self._at_s = max(now_s, self._at_s)
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
