"""How quickly chunks come from Redis and how quickly the engine computes, as it goes. Thread-safe; the caller
brings the clock.
"""

from __future__ import annotations

import threading

from memserve.policy.kv.loading import LoadRates

# Each measurement weighs less than the one after it.
MEMORY = 0.7
# Fewer decide nothing: the first load opens connections, the first step is the engine's warm-up.
LEAST_SAMPLES = 3
STALE_S = 5.0
# A load or a step that is shorter than this says more of the machine's mood than of the rate.
LEAST_SECONDS = 1e-5


class _Ratio:
    """Amounts over seconds, the recent ones weighing more."""

    def __init__(self) -> None:
        self._amount = self._seconds = 0.0
        self._samples = 0

    def sample(self, amount: float, seconds: float) -> None:
        self._samples += 1
        self._amount = MEMORY * self._amount + amount
        self._seconds = MEMORY * self._seconds + max(seconds, LEAST_SECONDS)

    @property
    def per_s(self) -> float:
        """0 before there are enough."""
        return self._amount / self._seconds if self._samples >= LEAST_SAMPLES else 0.0


class MeasuredRates:
    """What `memserve.policy.kv.loading` needs to know."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latency_s = 0.0
        self._bytes, self._tokens = _Ratio(), _Ratio()
        self._loaded_s: float | None = None

    def looked_up(self, seconds: float) -> None:
        """A round trip without a payload."""
        with self._lock:
            self._latency_s = (
                seconds if self._latency_s == 0 else MEMORY * self._latency_s + (1 - MEMORY) * seconds
            )

    def loaded(self, payload_bytes: int, seconds: float, now_s: float) -> None:
        """A load that ended. payload_bytes: of what came and verified, perhaps none."""
        with self._lock:
            # A short load says little of the bandwidth: the round trip is no more than half of it.
            self._bytes.sample(payload_bytes, max(seconds - self._latency_s, seconds / 2))
            self._loaded_s = now_s

    def prefilled(self, tokens: int, seconds: float) -> None:
        """A step of the engine that computed prompt tokens."""
        with self._lock:
            self._tokens.sample(tokens, seconds)

    def now(self, now_s: float) -> tuple[LoadRates, bool]:
        """The rates, and whether that of loading is stale."""
        with self._lock:
            stale = self._loaded_s is None or now_s - self._loaded_s > STALE_S
            return LoadRates(self._latency_s, self._bytes.per_s, self._tokens.per_s), stale
