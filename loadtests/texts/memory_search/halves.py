"""The local index alone: searches, writes, a rebuild, and what a memory takes."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loadtests.harness.figures import report
from loadtests.texts.memory_search.corpus import (
    DIM,
    LIMIT,
    TENANT,
    Corpus,
    Timings,
    Writing,
    timed,
    vector_of,
)
from memserve.domain import Memory
from memserve.memory.texts.local.index import LocalIndex
from memserve.memory.texts.records import Record, first_history, memory_key, tenant_key
from memserve.memory.texts.store import Scope
from memserve.policy.recall.words import words_of

CANDIDATES = 32
"""Of each half. A search for the best five asks for so many."""
TIMEOUT_S = 300.0
NAMESPACE = "n1"


@dataclass(frozen=True, slots=True)
class IndexFigures:
    """Of one number of rows."""

    rows: int
    rows_per_s: float
    """Put in batches of 1,000, as a rebuild does, without making the memories."""
    cold_s: float
    """The first search of a namespace, which reads its vectors."""
    dense: Timings
    words: Timings
    both: Timings
    both_writing: Timings
    writes_per_s: float
    recall: float
    """Share of the exact best five, over 20 queries."""
    disk_bytes_each: float
    vector_bytes_each: float
    peak_bytes: int
    """The largest resident size of this process until now."""

    def figures(self) -> dict[str, object]:
        return {
            "rows": self.rows, "rows_per_s": round(self.rows_per_s), "cold_s": round(self.cold_s, 3),
            "dense": self.dense.figures(), "words": self.words.figures(), "both": self.both.figures(),
            "both_writing": self.both_writing.figures(), "writes_per_s": round(self.writes_per_s),
            "recall": self.recall, "disk_bytes_each": round(self.disk_bytes_each),
            "vector_bytes_each": round(self.vector_bytes_each), "peak_bytes": self.peak_bytes,
        }  # fmt: skip


def measure_index(folder: Path, corpus: Corpus, rows: int, searches: int, budget_s: float) -> IndexFigures:
    """Fill an index, and time its halves one after the other, as one caller sees them."""
    index = LocalIndex.begin_rebuild(folder, DIM, "seeded")
    put_s = 0.0
    for part in corpus.parts(rows):
        records = records_of(corpus, part.start, len(part))
        began_s = time.perf_counter()
        index.put(records, timeout_s=TIMEOUT_S)
        put_s += time.perf_counter() - began_s
    began_s = time.perf_counter()
    index.finish_rebuild()
    index.sync()
    put_s += time.perf_counter() - began_s
    report(f"{rows:,} rows are in the local index, {rows / put_s:.0f} a second")
    queries = corpus.queries(searches, rows)
    vectors = [vector_of(query) for query in queries]
    words = [list(dict.fromkeys(words_of(query))) for query in queries]
    scope = Scope(tenant_key(TENANT), (NAMESPACE,))

    def nearest(number: int) -> object:
        return index.nearest(scope, vectors[number % searches], CANDIDATES, timeout_s=TIMEOUT_S)

    def by_words(number: int) -> object:
        return index.by_words(scope, words[number % searches], CANDIDATES, timeout_s=TIMEOUT_S)

    def both(number: int) -> object:
        return nearest(number), by_words(number)

    began_s = time.perf_counter()
    nearest(0)
    cold_s = time.perf_counter() - began_s
    dense, worded, alone = (timed(half, searches, budget_s) for half in (nearest, by_words, both))
    with Writing(
        lambda first, count: index.put(records_of(corpus, first, count), timeout_s=TIMEOUT_S)
    ) as writing:
        beside = timed(both, 10 * searches, budget_s)
    sizes = index.figures(timeout_s=TIMEOUT_S)
    held = index.counts(timeout_s=TIMEOUT_S)[scope.tenant_key, NAMESPACE].live
    figures = IndexFigures(
        rows, rows / put_s, cold_s, dense, worded, alone, beside, writing.writes_per_s,
        _recall(index, scope, queries[:20]), sizes.disk_bytes / sizes.rows, sizes.vector_bytes / held,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )  # fmt: skip
    index.close()
    return figures


def records_of(corpus: Corpus, first: int, count: int) -> list[Record]:
    """Of the memories with these numbers."""
    records = []
    for tenant, new in corpus.memories(first, count):
        memory = Memory(new.memory_id, new.namespace, new.text, new.source, (), float(first))
        records.append(
            Record(
                memory_key(tenant, new.namespace, new.memory_id),
                tenant_key(tenant),
                first_history(memory),
                vector_of(new.text),
            )
        )
    return records


def _recall(index: LocalIndex, scope: Scope, queries: list[str]) -> float:
    """Against the exact cosines of all of the namespace's vectors."""
    exact: dict[str, list[tuple[float, str]]] = {query: [] for query in queries}
    wanted = np.stack([vector_of(query) for query in queries])
    after = 0
    while page := index.scan(after, 2000, with_vectors=True, timeout_s=TIMEOUT_S):
        after = page[-1][0]
        own = [
            record
            for _, record in page
            if record.tenant_key == scope.tenant_key and record.memory.namespace in scope.namespaces
        ]
        vectors = [record.vector for record in own if record.vector is not None]
        if vectors:
            for query, scores in zip(queries, wanted @ np.stack(vectors).T, strict=True):
                scored = zip(scores.tolist(), (record.key for record in own), strict=True)
                exact[query] = sorted((*exact[query], *scored), reverse=True)[:LIMIT]
    shares = []
    for query in queries:
        found = {hit.key for hit in index.nearest(scope, vector_of(query), LIMIT, timeout_s=TIMEOUT_S)}
        shares.append(len(found & {key for _, key in exact[query]}) / max(1, len(exact[query])))
    return sum(shares) / len(shares)
