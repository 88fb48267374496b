"""The orders that Milvus does not know: of lists, and of what words find by one tenant's statistics. Pure."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from memserve.memory.texts.store import ListOrder

_BM25_K1 = 1.2
_BM25_B = 0.75


@dataclass(frozen=True, slots=True)
class SortKey:
    """A record's place in a list. Equal values are in the order of namespace and id, also in a descending
    list.
    """

    value: Any
    namespace: str
    memory_id: str
    descending: bool
    key: str = ""
    """The record's."""

    @classmethod
    def of(cls, row: Mapping[str, Any], order: ListOrder, descending: bool) -> Self:
        """row: of Milvus, with ORDER_COLUMNS."""
        value: Any
        match order:
            case ListOrder.CREATED:
                value = row["created_s"]
            case ListOrder.UPDATED:
                value = row["updated_s"]
            case ListOrder.PLACE:
                value = row["within"], row["position"]
            case _:
                value = row["memory_id"]
        return cls(value, row["namespace"], row["memory_id"], descending, row["pk"])

    @classmethod
    def after(cls, after: tuple[object, str, str], descending: bool) -> Self:
        """after: the value, the namespace and the id of a list's last record."""
        value, namespace, memory_id = after
        # JSON makes a list of a pair.
        return cls(tuple(value) if isinstance(value, list) else value, namespace, memory_id, descending)

    def __lt__(self, other: Self) -> bool:
        if self.value != other.value:
            return bool(self.value > other.value if self.descending else self.value < other.value)
        return (self.namespace, self.memory_id) < (other.namespace, other.memory_id)


@dataclass(frozen=True, slots=True)
class WordRanking:
    """BM25 by the statistics of one tenant. Source: Robertson and Zaragoza 2009."""

    words: Sequence[str]
    frequency: Mapping[str, int]
    """Of each word, the memories that have it."""
    rows: int

    def best(self, texts: Mapping[str, Sequence[str]], limit: int) -> tuple[list[str], float]:
        """The keys of the best of these texts, best first, and the mean length of all of them.

        texts: by key, their words.
        """
        if not texts:
            return [], 0.0
        mean_length = sum(map(len, texts.values())) / len(texts)
        asked = frozenset(self.words)
        scores = {
            key: self._score(Counter(word for word in text if word in asked), len(text) / mean_length)
            for key, text in texts.items()
        }
        return sorted(scores, key=lambda key: (-scores[key], key))[:limit], mean_length

    def _score(self, counts: Mapping[str, int], length: float) -> float:
        """counts: of the words that are asked for. length: of the text, in mean lengths."""
        norm = _BM25_K1 * (1 - _BM25_B + _BM25_B * length)
        score = 0.0
        for word, count in counts.items():
            holders = self.frequency[word]
            weight = math.log(1 + (max(self.rows, holders) - holders + 0.5) / (holders + 0.5))
            score += weight * count * (_BM25_K1 + 1) / (count + norm)
        return score


def best_of_each(lists: Sequence[Sequence[str]], without: Collection[str], limit: int) -> list[str]:
    """At most `limit` different keys of several lists: the first of each, then the second of each, and so on.

    without: these are passed over.
    """
    keys: dict[str, None] = {}
    for rank in itertools.zip_longest(*lists):
        for key in rank:
            if len(keys) == limit:
                return list(keys)
            if key is not None and key not in without:
                keys[key] = None
    return list(keys)
