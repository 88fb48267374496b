"""A store of records with the tenant of one clause of its contract."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from memserve.domain import LinkKind, Memory, MemoryState
from memserve.memory.texts.records import Record
from memserve.memory.texts.store import DenseHit, ListOrder, RecordStore, Scope, WordHits
from memserve.policy.recall.words import words_of
from tests.memory.texts.store_records import Vector, changed, ids, record_of, scope_of

TIMEOUT_S = 30.0
ALL_STATES = frozenset({MemoryState.LIVE, MemoryState.SUPERSEDED, MemoryState.FORGOTTEN})


def _a_tenant() -> str:
    return f"tenant-{uuid.uuid4().hex}"


@dataclass(frozen=True, slots=True)
class Kept:
    """A store, and the tenant of one clause."""

    store: RecordStore
    tenant: str = field(default_factory=_a_tenant)

    def put(self, *memories: Memory, vectors: Sequence[Vector] | None = None) -> list[Record]:
        """The records of these memories, which the store has then."""
        records = [
            record_of(self.tenant, memory, vectors[place] if vectors else None)
            for place, memory in enumerate(memories)
        ]
        self.store.put(records, timeout_s=TIMEOUT_S)
        return records

    def replace(self, record: Record, **fields: object) -> Record:
        """The record with one more version, which the store has then."""
        after = changed(record, **fields)
        self.store.put([after], timeout_s=TIMEOUT_S)
        return after

    def get(self, key: str, *, with_vectors: bool = False) -> Record | None:
        return self.store.get_many([key], with_vectors=with_vectors, timeout_s=TIMEOUT_S).get(key)

    def nearest(self, vector: Vector, limit: int = 10, scope: Scope | None = None) -> list[DenseHit]:
        return self.store.nearest(scope or scope_of(self.tenant), vector, limit, timeout_s=TIMEOUT_S)

    def by_words(self, text: str, limit: int = 10, scope: Scope | None = None) -> WordHits:
        words = list(dict.fromkeys(words_of(text)))
        return self.store.by_words(scope or scope_of(self.tenant), words, limit, timeout_s=TIMEOUT_S)

    def worded(self, text: str, limit: int = 10, scope: Scope | None = None) -> list[str]:
        """The ids of what the words of the text find, best first."""
        return ids(self.by_words(text, limit, scope).memories)

    def page(
        self, order: ListOrder, limit: int = 100, scope: Scope | None = None, *, descending: bool = False,
        after: tuple[object, str, str] | None = None,
    ) -> list[Record]:  # fmt: skip
        return self.store.page(
            scope or scope_of(self.tenant), order, limit, descending=descending, after=after,
            timeout_s=TIMEOUT_S,
        )  # fmt: skip

    def listed(self, scope: Scope | None = None) -> list[str]:
        return ids(self.page(ListOrder.MEMORY_ID, scope=scope))

    def at_places(self, within: str, first: int, last: int, scope: Scope | None = None) -> list[Memory]:
        return self.store.at_places(scope or scope_of(self.tenant), within, first, last, timeout_s=TIMEOUT_S)

    def linking_to(
        self, namespace: str, memory_id: str, *kinds: LinkKind, limit: int = 10, scope: Scope | None = None
    ) -> list[str]:
        """The ids of what links there, sorted. kinds: none means all."""
        chosen = frozenset(kinds or (kind for kind in LinkKind if kind is not LinkKind.UNKNOWN))
        return sorted(
            ids(
                self.store.linking_to(
                    scope or scope_of(self.tenant), namespace, memory_id, chosen, limit, timeout_s=TIMEOUT_S
                )
            )
        )


Clause = Callable[[Kept], None]
