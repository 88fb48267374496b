"""What a cached chunk is worth: the time that a use of the chunk saves, by the room that it takes.

Redis decides which chunk leaves first, because the bytes are counted there (`memserve/kv/ledger/`).
A chunk's rank is the clock plus its uses times its worth. The beginning of a chain always ranks above its
end.
"""

from __future__ import annotations

MIB = 1 << 20
SLOW_ENGINE_TOKENS_PER_S = 1_000.0
"""Prefill speed of an engine that has not measured its own yet: a small model on a slow machine. Chunks of
different models compete by their worth, so that only the ratios between models matter. It is half of
routing's figure for a new worker: a chunk whose cost is not known yet counts as dear, and does not leave
first."""


def worth_per_use(tokens: int, stored_bytes: int, prefill_tokens_per_s: float) -> float:
    """Seconds of prefill that a hit saves for each MiB that the chunk occupies.

    tokens: in the chunk.
    prefill_tokens_per_s: as the engine measures it, 0 before its first measurement.
    Raises ValueError for a chunk without tokens or bytes.
    """
    if tokens < 1 or stored_bytes < 1:
        raise ValueError(f"a chunk of {tokens} tokens in {stored_bytes} bytes")
    return tokens / (prefill_tokens_per_s or SLOW_ENGINE_TOKENS_PER_S) / (stored_bytes / MIB)
