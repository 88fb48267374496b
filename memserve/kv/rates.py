"""How fast chunks arrive from Redis, and how fast the engine computes.

Thread-safe. The clock is an argument.
"""

from __future__ import annotations

import threading
from collections import deque

from memserve.policy.kv.loading import LoadRates

# What is left of a step's or a round trip's weight after the next one.
MEMORY = 0.7
# The bandwidth is that of the fastest of so many loads. A load of a few chunks says little about it, and one
# that meets a busy machine says less than it is; none says much more (see `loaded`). What all of the last
# loads meet is believed, and one fast load ends a slow time. A load too many costs its budget at most.
LOADS = 5
# Fewer samples decide nothing. The first load opens connections, and the first step is the engine's warm-up.
MIN_SAMPLES = 3
STALE_S = 5.0
# A load that brought nothing. 0 means unmeasured.
MIN_BYTES_PER_S = 1.0
# A shorter load or step counts as this long. Such a time says little about the rate.
MIN_SECONDS = 1e-5


class _Ratio:
    """Tokens over seconds. Recent steps weigh more, and steps of many tokens."""

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
        self._bytes_per_s: deque[float] = deque(maxlen=LOADS)
        self._tokens = _Ratio()
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
            transfer_s = max(seconds - self._latency_s, seconds / 2, MIN_SECONDS)
            self._bytes_per_s.append(max(payload_bytes / transfer_s, MIN_BYTES_PER_S))
            self._loaded_s = now_s

    def prefilled(self, tokens: int, seconds: float) -> None:
        """A step of the engine has computed prompt tokens."""
        with self._lock:
            self._tokens.sample(tokens, seconds)

    def now(self, now_s: float) -> tuple[LoadRates, bool]:
        """The rates, and whether the rate of loading is stale."""
        with self._lock:
            stale = self._loaded_s is None or now_s - self._loaded_s > STALE_S
            measured = len(self._bytes_per_s) >= MIN_SAMPLES
            bytes_per_s = max(self._bytes_per_s) if measured else 0.0
            return LoadRates(self._latency_s, bytes_per_s, self._tokens.per_s), stale
