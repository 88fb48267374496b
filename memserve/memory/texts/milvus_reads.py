"""What is read from the collection of memories, by key, by content, by place and by link. Blocking."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pymilvus import MilvusClient

from memserve.domain import LinkKind, Memory, MemoryState
from memserve.memory.texts.milvus_client import MilvusFailed
from memserve.memory.texts.milvus_old import OldMemories
from memserve.memory.texts.milvus_order import SortKey, WordRanking, best_of_each
from memserve.memory.texts.milvus_rows import (
    CURRENT_COLUMNS,
    ORDER_COLUMNS,
    RECORD_COLUMNS,
    Row,
    is_digest,
    key_filter,
    link_filter,
    memory_of,
    place_filter,
    record_from,
    scope_filter,
    word_filter,
)
from memserve.memory.texts.records import Record
from memserve.memory.texts.store import DenseHit, ListOrder, Scope, WordHits

if TYPE_CHECKING:
    from memserve.memory.texts.milvus_lite import MilvusLiteStore

# A record has at most 256 KiB, so that a page has at most 32 MiB. A Milvus server refuses above 100 MB.
RECORD_ROWS = 128
LIGHT_ROWS = 4096
# Of the words that fill their lists, so many are counted.
COUNTED_WORDS = 8
PLACES_MAX = 4096
# No key: no record has it.
NO_KEY = "0" * 64


@dataclass(frozen=True, slots=True)
class KeyDigest:
    """A record's key, and the digest of its history."""

    key: str
    digest: str


class MilvusReads:
    """Reads of one collection. Every method takes at most `timeout_s` for each call that it makes on Milvus,
    and raises what `milvus_failures` catches.
    """

    def __init__(
        self, client: MilvusClient, name: str, lite: MilvusLiteStore | None, *, is_searched: bool
    ) -> None:
        """is_searched: False for a collection without search indexes."""
        self._client = client
        self._name = name
        self._lite = lite
        self._is_searched = is_searched
        # Rows of an older schema that have not been moved yet.
        self._old: OldMemories | None = None

    # By key

    def get(self, key: str, *, timeout_s: float) -> Memory | None:
        """The current version of one memory."""
        record = self.get_many([key], timeout_s=timeout_s).get(key)
        return None if record is None else record.memory

    def ping(self, *, timeout_s: float) -> None:
        """Look a key up that no memory has. Raises when Milvus does not answer."""
        self._query(key_filter([NO_KEY]), ["pk"], timeout_s)

    def get_many(
        self, keys: Sequence[str], *, with_vectors: bool = False, timeout_s: float
    ) -> dict[str, Record]:
        """The records that exist, by key. At most a thousand keys."""
        columns = [*RECORD_COLUMNS, "dense"] if with_vectors else RECORD_COLUMNS
        records: dict[str, Record] = {}
        for page in _batches(keys, RECORD_ROWS):
            for row in self._query(key_filter(page), columns, timeout_s):
                records[row["pk"]] = record_from(row)
        missing = [key for key in keys if key not in records]
        if self._old is not None and missing:
            records |= self._old.get_many(missing, with_vectors=with_vectors, timeout_s=timeout_s)
        return records

    def digests(self, keys: Sequence[str], *, timeout_s: float) -> dict[str, str]:
        """The digests of the histories of the records that exist, by key. Cheaper than `get_many`."""
        digests: dict[str, str] = {}
        for page in _batches(keys, LIGHT_ROWS):
            for row in self._query(key_filter(page), ["pk", "digest"], timeout_s):
                digests[row["pk"]] = row["digest"]
        return digests

    def keys_after(self, after: str, limit: int, *, until: str = "", timeout_s: float) -> list[KeyDigest]:
        """The next records of all tenants in the order of keys. Milvus Lite looks at all keys for each page,
        so that a large page costs as much as a small one.

        after: the last key of the page before, or "". until: no later key; "" for all. limit: 1 to 16,384.
        """
        if not all(is_digest(key) for key in (after, until) if key):
            raise ValueError("a key is 64 hex digits")
        asked = f'pk > "{after}"' + (f' and pk <= "{until}"' if until else "")
        page = next(self._scan(asked, ["pk", "digest"], limit, timeout_s), [])
        return [KeyDigest(row["pk"], row["digest"]) for row in page]

    def records(
        self, after: str = "", *, with_vectors: bool = True, timeout_s: float
    ) -> Iterator[list[Record]]:
        """All records of all tenants in the order of keys, page by page. Writes meanwhile may be missed.

        after: the last key of the page that was read last; "" for the first.
        """
        while keys := self.keys_after(after, LIGHT_ROWS, timeout_s=timeout_s):
            for start in range(0, len(keys), RECORD_ROWS):
                page = [key.key for key in keys[start : start + RECORD_ROWS]]
                found = self.get_many(page, with_vectors=with_vectors, timeout_s=timeout_s)
                yield [found[key] for key in page if key in found]
            after = keys[-1].key

    def row_count(self, *, timeout_s: float) -> int:
        """All records of all tenants, without reading them. While older rows are moved, of the new schema
        alone.
        """
        return self._count("", timeout_s)

    # By content

    def nearest(
        self, scope: Scope, vector: npt.NDArray[np.float32], limit: int, *, timeout_s: float
    ) -> list[DenseHit]:
        """The nearest by cosine, best first. vector: [dim]. limit: 1 to 1,024."""
        (rows,) = self._search(
            _live(scope), "dense", "COSINE", [vector.tolist()], limit, CURRENT_COLUMNS, timeout_s
        )
        return [DenseHit(row["pk"], memory_of(row), min(1.0, max(-1.0, score))) for row, score in rows]

    def by_words(self, scope: Scope, words: Sequence[str], limit: int, *, timeout_s: float) -> WordHits:
        """Memories with at least one of the words, as `words_of` spells them. limit: 1 to 1,024.

        Milvus weighs words by the memories of all tenants. So each word is searched alone too, in one more
        call, and what is found is put in order by the tenant's own statistics. A word that fills its list is
        common: it is counted, or where many do, estimated by its share of what was found. The mean length is
        that of what was found.
        """
        words = [word for word in dict.fromkeys(words) if word.isalnum()]
        scope = _live(scope)
        rows = self._count(scope_filter(scope), timeout_s) if words else 0
        if not rows:
            return WordHits((), dict.fromkeys(words, 0), 0, 0.0)
        columns = [*CURRENT_COLUMNS, "words"]
        (hits,) = self._search(scope, "sparse", "BM25", [" ".join(words)], limit, columns, timeout_s)
        found = {row["pk"]: row for row, _ in hits}
        alone = self._search(scope, "sparse", "BM25", words, limit, ["pk"], timeout_s)
        further = best_of_each([[row["pk"] for row, _ in hits] for hits in alone], found.keys(), RECORD_ROWS)
        if further:
            found |= {row["pk"]: row for row in self._query(key_filter(further), columns, timeout_s)}
        texts = {key: row["words"].split() for key, row in found.items()}
        frequency = dict(zip(words, map(len, alone), strict=True))
        full = [word for word in words if frequency[word] >= limit]
        for word in full[:COUNTED_WORDS]:
            frequency[word] = self._count(word_filter(scope, word), timeout_s)
        for word in full[COUNTED_WORDS:]:
            share = sum(word in text for text in texts.values()) / len(texts)
            frequency[word] = max(limit, round(share * rows))
        ranking = WordRanking(words, frequency, rows)
        best, mean_length = ranking.best(texts, limit)
        return WordHits(tuple((key, memory_of(found[key])) for key in best), frequency, rows, mean_length)

    # By place and by link

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

        Milvus does not sort. The light columns of the scope are read, and the least of them are kept.

        after: the order's value, the namespace and the id of the last record of the page before. The value
        of the order by place is the pair of document and position.
        """
        self._require_moved()
        keys = (
            SortKey.of(row, order, descending)
            for page in self._scan(scope_filter(scope), ORDER_COLUMNS, LIGHT_ROWS, timeout_s)
            for row in page
        )
        if after is not None:
            last = SortKey.after(after, descending)
            keys = (key for key in keys if last < key)
        chosen = [key.key for key in heapq.nsmallest(limit, keys)]
        records: dict[str, Record] = {}
        for page in _batches(chosen, RECORD_ROWS):
            records |= self.get_many(page, timeout_s=timeout_s)
        return [records[key] for key in chosen if key in records]

    def at_places(
        self, scope: Scope, within: str, first: int, last: int, *, timeout_s: float
    ) -> list[Memory]:
        """The memories of a document or session from one position to another, both included, in order."""
        self._require_moved()
        rows = self._query(place_filter(scope, within, first, last), CURRENT_COLUMNS, timeout_s, PLACES_MAX)
        memories = [memory_of(row) for row in rows]
        return sorted(
            memories, key=lambda memory: (memory.place.position, memory.namespace, memory.memory_id)
        )

    def linking_to(
        self, scope: Scope, target_namespace: str, memory_id: str, kinds: frozenset[LinkKind], limit: int,
        *, timeout_s: float,
    ) -> list[Memory]:  # fmt: skip
        """Memories of the scope that keep a link to this one, by namespace and id."""
        self._require_moved()
        asked = link_filter(scope, target_namespace, memory_id, kinds)
        memories = [memory_of(row) for row in self._query(asked, CURRENT_COLUMNS, timeout_s, PLACES_MAX)]
        return sorted(memories, key=lambda memory: (memory.namespace, memory.memory_id))[:limit]

    # Calls

    def _require_moved(self) -> None:
        """What has not been moved cannot be found by content, place or link: say so, and not that it is not
        there.
        """
        if self._old is not None:
            raise MilvusFailed("the memories of an older memserve are being moved to the new schema")

    def _query(self, asked: str, columns: list[str], timeout_s: float, limit: int | None = None) -> list[Row]:
        bounds = {} if limit is None else {"limit": limit}
        rows: list[Row] = self._client.query(
            self._name, filter=asked, output_fields=columns, timeout=timeout_s, **bounds
        )
        return rows

    def _count(self, asked: str, timeout_s: float) -> int:
        rows = self._client.query(self._name, filter=asked, output_fields=["count(*)"], timeout=timeout_s)
        return int(rows[0]["count(*)"])

    def _scan(self, asked: str, columns: list[str], rows: int, timeout_s: float) -> Iterator[list[Row]]:
        """All rows in the order of keys, in pages of `rows`."""
        pages = self._client.query_iterator(
            self._name, batch_size=rows, filter=asked, output_fields=columns, timeout=timeout_s
        )
        try:
            while page := pages.next():
                yield page
        finally:
            pages.close()

    def _search(
        self,
        scope: Scope,
        column: str,
        metric: str,
        queries: Sequence[object],
        limit: int,
        columns: list[str],
        timeout_s: float,
    ) -> list[list[tuple[Row, float]]]:
        """For each query, the rows that it finds with their scores, best first."""
        if not self._is_searched:
            raise MilvusFailed("this collection keeps memories, and is not searched")
        self._require_moved()
        answers: list[list[dict[str, Any]]] = self._client.search(
            self._name,
            data=queries,
            anns_field=column,
            search_params={"metric_type": metric},
            filter=scope_filter(scope),
            # A Milvus server finds the partition by the filter, and refuses a partition by name.
            partition_names=None if self._lite is None else [self._lite.partition_of(scope.tenant_key)],
            limit=limit,
            output_fields=columns,
            timeout=timeout_s,
        )
        found = [[(hit["entity"], float(hit["distance"])) for hit in hits] for hits in answers]
        # A row with none of the words has the score 0.
        return [[hit for hit in hits if metric != "BM25" or hit[1]] for hits in found]


def _live(scope: Scope) -> Scope:
    """What is not live is found by no content."""
    return replace(scope, states=scope.states & {MemoryState.LIVE})


def _batches(keys: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(keys), size):
        yield keys[start : start + size]
