"""What a cached chunk is worth: the time that one use of it saves, by what it occupies. Pure.

Who goes first is decided where the bytes are counted, in Redis (`memserve/kv/ledger/worth.lua`): clock +
uses × this, the beginning of a chain always above its end.
"""

from __future__ import annotations

MIB = 1 << 20
# Before the first measurement: a small model on a slow machine. Only ratios between models matter.
ASSUMED_PREFILL_TOKENS_PER_S = 1000.0


def worth_per_use(tokens: int, stored_bytes: int, prefill_tokens_per_s: float) -> float:
    """Seconds of prefill that a hit saves for each MiB that it occupies.

    tokens: of the chunk. prefill_tokens_per_s: as the engine measures it, 0 before it has.
    Raises ValueError for a chunk without tokens or bytes.
    """
    if tokens < 1 or stored_bytes < 1:
        raise ValueError(f"a chunk of {tokens} tokens in {stored_bytes} bytes")
    return tokens / (prefill_tokens_per_s or ASSUMED_PREFILL_TOKENS_PER_S) / (stored_bytes / MIB)
