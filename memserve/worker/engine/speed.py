"""How fast an engine answers."""

from __future__ import annotations

from dataclasses import dataclass

SMOOTHING = 0.3


@dataclass
class Speed:
    """A smoothed rate of whole requests, which gateways predict with.

    `memserve.kv.rates` measures prefill too, and stays apart. It runs in vLLM's engine process, takes steps
    of the engine, and compares computing with loading; so it ignores the first two steps, which are slow.
    This class runs in the replica and takes requests from their arrival to the first token, with all that a
    caller waits for. It counts the first request at once, because a gateway has nothing else to go by.
    """

    tokens_per_s: float = 0.0
    """0 before the first sample."""

    def sample(self, tokens: int, seconds: float) -> None:
        if tokens > 0 and seconds > 0:
            rate = tokens / seconds
            self.tokens_per_s = (
                rate if self.tokens_per_s == 0 else self.tokens_per_s + SMOOTHING * (rate - self.tokens_per_s)
            )
