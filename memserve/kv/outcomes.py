"""What is said of chunks on their way to Redis and back: whose they are, what became of them, and the
counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from memserve.kv.ledger.ledger import Admission, Owner, Removal
from memserve.kv.values.envelope import Refusal


class Put(Enum):
    """What became of a chunk that was to be stored."""

    STORED = "stored"
    ALREADY_PRESENT = "already_present"
    # The ledger would not have it: see Admission.
    NOT_ADMITTED = "not_admitted"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Account:
    """Whose chunks are stored, and where they stand.

    parents: [n] chunk keys, b"" for the first of a chain. depths_tokens: [n] where each ends in its prompt.
    worth_per_use: from `memserve.policy.kv.eviction`. at_once: admit them on their first use.
    """

    owner: Owner
    parents: Sequence[bytes]
    depths_tokens: Sequence[int]
    worth_per_use: float
    at_once: bool = False


@dataclass(slots=True)
class StoreStats:
    """What happened since the last reset. Chunks, bytes of payloads as they are stored, seconds summed over
    threads.

    unanswered: calls that Redis failed or did not answer in time; skipped: calls not made because the circuit
    was open.
    """

    hits: int = 0
    misses: int = 0
    refused: Counter[Refusal] = field(default_factory=Counter)
    stored: int = 0
    already_present: int = 0
    not_admitted: Counter[Admission] = field(default_factory=Counter)
    removed: Counter[Removal] = field(default_factory=Counter)
    loop_failures: Counter[str] = field(default_factory=Counter)
    store_failures: int = 0
    unanswered: int = 0
    skipped: int = 0
    circuit_opened: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    read_s: float = 0.0
    write_s: float = 0.0
