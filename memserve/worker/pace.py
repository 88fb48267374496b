"""How long an answer's tokens wait for others, so that several go out in one message."""

from __future__ import annotations

import time

from memserve.loop_pressure import LoopPressure
from memserve.policy.pressure import WINDOW_MAX_S

HOLDS_S = 3.0
"""What a gateway says of itself is forgotten after this long. It says it again every second."""
GATEWAYS_MAX = 1024


class AnswerPace:
    """The windows of this worker's own loop and of the gateways that have said that theirs are late."""

    def __init__(self) -> None:
        self.own = LoopPressure()
        self._told: dict[str, tuple[float, float]] = {}
        """By the gateway's connection: its window, and until when it holds."""

    def window_s(self, gateway: str) -> float:
        """0: nothing waits. gateway: its connection."""
        if not self._told:
            return self.own.window_s
        window_s, until_s = self._told.get(gateway, (0.0, 0.0))
        if until_s < time.monotonic():
            window_s = 0.0
        return max(window_s, self.own.window_s)

    def told(self, gateway: str, window_s: float) -> None:
        """A gateway says how long tokens for it may wait. More than WINDOW_MAX_S is not waited."""
        now_s = time.monotonic()
        self._told = {name: each for name, each in self._told.items() if each[1] >= now_s}
        if window_s > 0 and len(self._told) < GATEWAYS_MAX:
            self._told[gateway] = min(window_s, WINDOW_MAX_S), now_s + HOLDS_S
        else:
            self._told.pop(gateway, None)
