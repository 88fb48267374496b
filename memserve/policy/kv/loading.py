"""Load or recompute: how many of a prompt's cached chunks to fetch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

PROBE_CHUNKS = 4


@dataclass(frozen=True, slots=True)
class LoadRates:
    """What a worker has measured. 0: not measured yet."""

    latency_s: float = 0.0
    """What a load takes before its first byte."""
    bytes_per_s: float = 0.0
    """How fast a load goes on after its first byte."""
    prefill_tokens_per_s: float = 0.0
    """How fast the engine computes a prompt while it does nothing else."""


class Decision(StrEnum):
    """Why this number of chunks is fetched."""

    LOAD = "load"
    """All chunks: loading is faster than computing."""
    SHORTENED = "shortened"
    """Not all chunks would arrive within the budget. The end of the chain is computed."""
    RECOMPUTE = "recompute"
    """No chunk: computing is faster."""
    UNMEASURED = "unmeasured"
    """One of the two speeds is not known yet. All chunks that arrive in time are fetched, and measured."""
    PROBE = "probe"
    """Computing was faster when the bandwidth was measured, which is long ago. A few chunks are fetched to
    measure again."""


def chunks_to_load(
    cached: int,
    *,
    chunk_tokens: int,
    chunk_bytes: int,
    waiting_bytes: int,
    rates: LoadRates,
    budget_s: float,
    stale: bool = False,
) -> tuple[int, Decision]:
    """How many of the `cached` leading chunks to fetch, from 0 to all. The rest of the prompt is computed.

    waiting_bytes: of the loads under way, which arrive first.
    budget_s: a chunk that arrives later than this is lost.
    stale: the bandwidth was measured so long ago that it may have changed.
    """
    if not cached or rates.bytes_per_s <= 0:
        return cached, Decision.UNMEASURED
    wait_s = rates.latency_s + waiting_bytes / rates.bytes_per_s
    chunk_s = chunk_bytes / rates.bytes_per_s
    in_time = 0 if wait_s >= budget_s else min(cached, int((budget_s - wait_s) / chunk_s))
    compute_s = (
        in_time * chunk_tokens / rates.prefill_tokens_per_s if rates.prefill_tokens_per_s > 0 else math.inf
    )
    if in_time == 0 or wait_s + in_time * chunk_s >= compute_s:
        return (min(cached, PROBE_CHUNKS), Decision.PROBE) if stale else (0, Decision.RECOMPUTE)
    if in_time < cached:
        return in_time, Decision.SHORTENED
    return cached, Decision.LOAD if rates.prefill_tokens_per_s > 0 else Decision.UNMEASURED
