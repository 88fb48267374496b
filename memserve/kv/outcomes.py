"""What is said of chunks on their way to Redis and back: whose they are, what became of them, and the
counts.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum

from memserve.kv.ledger.records import Admission, Owner, Removal
from memserve.kv.values.envelope import Refusal


class Put(Enum):
    """What became of a chunk that was to be stored."""

    STORED = "stored"
    ALREADY_PRESENT = "already_present"
    NOT_ADMITTED = "not_admitted"
    """The ledger would not have it: see Admission."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Account:
    """Whose chunks are stored, and where they stand."""

    owner: Owner
    parents: Sequence[bytes]
    """[n] chunk keys, b"" for the first of a chain."""
    depths_tokens: Sequence[int]
    """[n] where each ends in its prompt."""
    worth_per_use: float
    """From `memserve.policy.kv.eviction`."""
    at_once: bool = False
    """Admit them on their first use."""


@dataclass(slots=True)
class StoreStats:
    """What happened since the last reset. Seconds are summed over threads."""

    hits: int = 0
    misses: int = 0
    refused: Counter[Refusal] = field(default_factory=Counter)
    """Values that did not verify or could not be decoded."""
    stored: int = 0
    already_present: int = 0
    not_admitted: Counter[Admission] = field(default_factory=Counter)
    removed: Counter[Removal] = field(default_factory=Counter)
    loop_failures: Counter[str] = field(default_factory=Counter)
    """Failed steps of background threads, by thread."""
    store_failures: int = 0
    unanswered: int = 0
    """Calls that Redis failed or did not answer in time."""
    skipped: int = 0
    """Calls that were not made, because the circuit was open or no known server holds the name."""
    circuit_opened: int = 0
    read_bytes: int = 0
    """Of payloads, as they are stored."""
    written_bytes: int = 0
    """Of payloads, as they are stored."""
    read_s: float = 0.0
    write_s: float = 0.0


class LiveStats:
    """The stats that are being counted. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stats = StoreStats()

    @contextmanager
    def counting(self) -> Iterator[StoreStats]:
        """The stats, to be changed inside the block only."""
        with self._lock:
            yield self._stats

    def take(self) -> StoreStats:
        """The stats since the last call, and start anew."""
        with self._lock:
            taken, self._stats = self._stats, StoreStats()
        return taken
