"""How fast chunks arrive from Redis, and how fast the engine computes.

Thread-safe. The clock is an argument.
"""

from __future__ import annotations

import threading

from memserve.policy.kv.loading import LoadRates

# What is left of a measurement's weight after the next measurement.
MEMORY = 0.7
# Fewer samples decide nothing. The first load opens connections, and the first step is the engine's warm-up.
MIN_SAMPLES = 3
STALE_S = 5.0
# A shorter load or step counts as this long. Such a time says little about the rate.
MIN_SECONDS = 1e-5


class _Ratio:
    """Amounts over seconds. Recent samples weigh more."""

    def __init__(self) -> None:
        self._amount = self._seconds = 0.0
        self._samples = 0

    def sample(self, amount: float, seconds: float) -> None:
        self._samples += 1
        self._amount = MEMORY * self._amount + amount
        self._seconds = MEMORY * self._seconds + max(seconds, MIN_SECONDS)

    @property
    def per_s(self) -> float:
        """0 before there are enough samples."""
        return self._amount / self._seconds if self._samples >= MIN_SAMPLES else 0.0


class MeasuredRates:
    """The measured rates that `memserve.policy.kv.loading` decides by."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latency_s = 0.0
        self._bytes, self._tokens = _Ratio(), _Ratio()
        self._loaded_s: float | None = None

    def looked_up(self, seconds: float) -> None:
        """A round trip without a payload took `seconds`."""
        with self._lock:
            self._latency_s = (
                seconds if self._latency_s == 0 else MEMORY * self._latency_s + (1 - MEMORY) * seconds
            )

    def loaded(self, payload_bytes: int, seconds: float, now_s: float) -> None:
        """A load has ended.

        payload_bytes: of the chunks that arrived and verified, perhaps none.
        """
        with self._lock:
            # The round trip is taken off, but at most half of the time: a short load says little about the
            # bandwidth.
            self._bytes.sample(payload_bytes, max(seconds - self._latency_s, seconds / 2))
            self._loaded_s = now_s

    def prefilled(self, tokens: int, seconds: float) -> None:
        """A step of the engine has computed prompt tokens."""
        with self._lock:
            self._tokens.sample(tokens, seconds)

    def now(self, now_s: float) -> tuple[LoadRates, bool]:
        """The rates, and whether the rate of loading is stale."""
        with self._lock:
            stale = self._loaded_s is None or now_s - self._loaded_s > STALE_S
            return LoadRates(self._latency_s, self._bytes.per_s, self._tokens.per_s), stale
