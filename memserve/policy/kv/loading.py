"""Load or recompute: how many of a prompt's cached chunks to fetch. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

PROBE_CHUNKS = 4


@dataclass(frozen=True, slots=True)
class LoadRates:
    """As measured. 0: not measured yet.

    latency_s: what a load takes before its first byte. bytes_per_s: then. prefill_tokens_per_s: of the
    engine, alone.
    """

    latency_s: float = 0.0
    bytes_per_s: float = 0.0
    prefill_tokens_per_s: float = 0.0


class Decision(StrEnum):
    """Why so many chunks are fetched."""

    LOAD = "load"
    # Not everything would come within the budget: the end of the chain is computed.
    SHORTENED = "shortened"
    RECOMPUTE = "recompute"
    # Nothing is known of one side yet: fetch, and measure.
    UNMEASURED = "unmeasured"
    # Computing is sooner, but that was measured long ago: fetch a few chunks, and measure again.
    PROBE = "probe"


def chunks_to_load(
    found: int,
    *,
    chunk_tokens: int,
    chunk_bytes: int,
    waiting_bytes: int,
    rates: LoadRates,
    budget_s: float,
    stale: bool = False,
) -> tuple[int, Decision]:
    """How many of the `found` leading chunks to fetch; the rest of the prompt is computed.

    waiting_bytes: of loads under way, which come first. budget_s: what has not come by then would be lost.
    stale: the bandwidth was measured so long ago that it may have changed. Returns 0 to found.
    """
    if not found or rates.bytes_per_s <= 0:
        return found, Decision.UNMEASURED
    wait_s = rates.latency_s + waiting_bytes / rates.bytes_per_s
    chunk_s = chunk_bytes / rates.bytes_per_s
    in_time = 0 if wait_s >= budget_s else min(found, int((budget_s - wait_s) / chunk_s))
    compute_s = (
        in_time * chunk_tokens / rates.prefill_tokens_per_s if rates.prefill_tokens_per_s > 0 else math.inf
    )
    if in_time == 0 or wait_s + in_time * chunk_s >= compute_s:
        return (min(found, PROBE_CHUNKS), Decision.PROBE) if stale else (0, Decision.RECOMPUTE)
    if in_time < found:
        return in_time, Decision.SHORTENED
    return found, Decision.LOAD if rates.prefill_tokens_per_s > 0 else Decision.UNMEASURED
