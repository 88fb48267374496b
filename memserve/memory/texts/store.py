"""What the text memory asks of the place that keeps and finds its records.

Two stores do it: the local index beside Milvus Lite (`local/`), and a Milvus server (`milvus.py`). Both pass
the contract in `tests/memory/texts/store_contract.py`. The calls block; `index.py` has the threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from memserve.domain import LinkKind, Memory, MemoryKind, MemoryState
from memserve.domain.open_enum import OpenEnum
from memserve.memory.texts.records import Record


@dataclass(frozen=True, slots=True)
class Scope:
    """Where to look. Nothing outside the tenant's namespaces is ever looked at."""

    tenant_key: str
    namespaces: tuple[str, ...]
    """1 to 16, checked: a name may stand in a filter as it is."""
    states: frozenset[MemoryState] = frozenset({MemoryState.LIVE})
    kinds: frozenset[MemoryKind] | None = None
    """None: all."""
    created_from_s: float | None = None
    """Inclusive."""
    created_until_s: float | None = None
    """Exclusive."""


@dataclass(frozen=True, slots=True)
class DenseHit:
    """Found by meaning."""

    key: str
    memory: Memory
    cosine: float
    """[-1, 1], of the exact vectors."""


@dataclass(frozen=True, slots=True)
class WordHits:
    """What was found by words, and the statistics that a ranking needs."""

    memories: tuple[tuple[str, Memory], ...]
    """Keys and memories, the store's best first."""
    document_frequency: Mapping[str, int]
    """Of each word of the query, the tenant's memories that have it; an estimate of a store that cannot
    count."""
    rows: int
    """The tenant's searched memories."""
    mean_length: float
    """Words in one of them."""


class ListOrder(OpenEnum):
    """The order of a list. Equal memories are ordered by namespace and id."""

    CREATED = "created"
    UPDATED = "updated"
    MEMORY_ID = "memory_id"
    PLACE = "place"
    """By document or session, then by position."""
    UNKNOWN = "unknown"


class RecordStore(Protocol):
    """Keeps records by key, and finds them. Blocking; bounded by `timeout_s`.

    A record is seen by every later call as soon as `put` has returned, in both halves of a search; a record
    that is superseded, forgotten or deleted is in neither from then on. Records that are returned have no
    vector unless it is asked for.
    """

    def put(self, records: Sequence[Record], *, timeout_s: float) -> None:
        """Keep records, in place of those with the same keys. All of them have their vectors."""

    def delete(self, keys: Sequence[str], *, timeout_s: float) -> None:
        """Remove records with their histories. Keys that do not exist are passed over."""

    def get_many(
        self, keys: Sequence[str], *, with_vectors: bool = False, timeout_s: float
    ) -> dict[str, Record]:
        """The records that exist, by key. At most a thousand keys."""
        ...

    def nearest(
        self, scope: Scope, vector: npt.NDArray[np.float32], limit: int, *, timeout_s: float
    ) -> list[DenseHit]:
        """The nearest by cosine, best first. vector: [dim]. limit: 1 to 1,024."""
        ...

    def by_words(self, scope: Scope, words: Sequence[str], limit: int, *, timeout_s: float) -> WordHits:
        """Memories with at least one of the words, as `words_of` spells them. limit: 1 to 1,024."""
        ...

    def page(
        self,
        scope: Scope,
        order: ListOrder,
        limit: int,
        *,
        descending: bool = False,
        after: tuple[object, str, str] | None = None,
        timeout_s: float,
    ) -> list[Record]:
        """The next records in this order.

        after: the order's value, the namespace and the id of the last record of the page before.
        """
        ...

    def at_places(
        self, scope: Scope, within: str, first: int, last: int, *, timeout_s: float
    ) -> list[Memory]:
        """The memories of a document or session from one position to another, both included, in order."""
        ...

    def linking_to(
        self, scope: Scope, target_namespace: str, memory_id: str, kinds: frozenset[LinkKind], limit: int,
        *, timeout_s: float,
    ) -> list[Memory]:  # fmt: skip
        """Memories of the scope that keep a link to this one, by namespace and id."""
        ...

    def row_count(self, *, timeout_s: float) -> int:
        """All records of all tenants, without reading them."""
        ...

    def close(self) -> None: ...
