"""Chains of chunks for the tests of the ledger, written as a worker does."""

from __future__ import annotations

import redis

from memserve.kv.keys import VALUE_PREFIX
from memserve.kv.ledger.ledger import Ledger
from memserve.kv.ledger.records import Admission, Candidate, Owner, Settled

ANNA, BERT = Owner("anna"), Owner("bert", "ad" * 32)
SIZE = 1000
WORTH = 0.5


def chain(name: str, length: int, after: int = 0) -> list[Candidate]:
    """A chain's chunks, from the one after `after` on."""
    return [
        Candidate(f"{name}:{number:04}", SIZE, f"{name}:{number - 1:04}" if number else "", (number + 1) * 64)
        for number in range(after, length)
    ]


def write(
    client: redis.Redis, ledger: Ledger, candidates: list[Candidate], owner: Owner = ANNA
) -> list[Admission]:
    """As a worker does: reserve, remove the victims, write, settle."""
    reservation = ledger.reserve(candidates, owner, worth_per_use=WORTH)
    ledger.remove_values([entry for entry, _ in reservation.victims])
    for entry in reservation.entries.values():
        client.set(VALUE_PREFIX + entry.member, b"v" * SIZE, ex=100)
    assert ledger.settle((Settled.STORED, entry) for entry in reservation.entries.values()) == []
    return list(reservation.admissions)


def held(client: redis.Redis) -> set[str]:
    return {
        key.decode().removeprefix(VALUE_PREFIX) for key in client.scan_iter(VALUE_PREFIX + "*", count=1000)
    }


def stored_bytes(client: redis.Redis) -> int:
    return sum(client.strlen(VALUE_PREFIX + member) for member in held(client))


def worths(client: redis.Redis, *names: str) -> list[float]:
    return [float(client.zscore("{memserve:kv}:worth", name) or 0) for name in names]
