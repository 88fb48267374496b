"""What a load takes over a wire, raw and encoded."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import numpy as np

from loadtests.kv.kv_codecs.methods import Timed
from memserve.kv.outcomes import Put
from memserve.kv.store import RedisChunkStore

SAMPLE_BYTES = 2 << 20
WIRES = {"10 Gbit/s": 10e9 / 8, "1 Gbit/s": 1e9 / 8}  # bytes a second


def wire_bytes_per_s(url: str, rounds: int) -> float:
    """Verified loads of raw values of SAMPLE_BYTES through the store, median."""
    store = RedisChunkStore(url, "ab" * 32)
    keys = [bytes([number]) * 36 for number in range(4)]
    payload = np.random.default_rng(1).bytes(SAMPLE_BYTES)
    destinations = [memoryview(bytearray(SAMPLE_BYTES)) for _ in keys]
    assert set(store.store(keys, [payload] * len(keys), budget_s=10)) == {Put.STORED}
    taken_s = []
    for _ in range(2 + rounds):
        started_s = time.perf_counter()
        assert all(store.load(keys, destinations, budget_s=10))
        taken_s.append(time.perf_counter() - started_s)
    store.close()
    return len(keys) * SAMPLE_BYTES / statistics.median(taken_s)


@dataclass(frozen=True, slots=True)
class Load:
    """The time of SAMPLE_BYTES of chunks over one wire."""

    raw_s: float
    in_turn_s: float
    """Encoded, and decoded after that."""
    overlapped_s: float
    """Encoded, and decoded meanwhile on a second core."""


def load(timed: Timed, bytes_per_s: float) -> Load:
    raw_s = SAMPLE_BYTES / bytes_per_s
    return Load(raw_s, raw_s * timed.share + timed.decode_s, max(raw_s * timed.share, timed.decode_s))


def gains(timed: Timed, here_bytes_per_s: float) -> bool:
    here, ten = load(timed, here_bytes_per_s), load(timed, WIRES["10 Gbit/s"])
    sooner = here.in_turn_s < here.raw_s or ten.in_turn_s < ten.raw_s
    return sooner or (timed.share <= 1 / 1.25 and ten.in_turn_s < 1.25 * ten.raw_s)


def load_cells(timed: Timed, here_bytes_per_s: float) -> list[str]:
    """For each wire, the time of a load and what it is of a raw one's, in turn and overlapped."""
    cells = []
    for bytes_per_s in (here_bytes_per_s, *WIRES.values()):
        cost = load(timed, bytes_per_s)
        cells += [
            f"{cost.in_turn_s * 1e3:.2f}",
            f"{cost.in_turn_s / cost.raw_s:.2f}",
            f"{cost.overlapped_s / cost.raw_s:.2f}",
        ]
    return cells
