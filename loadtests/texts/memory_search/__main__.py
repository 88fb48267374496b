"""How long a search takes with 1,000 to 1,000,000 memories, alone and beside 500 writes a second.

The vector memory is measured whole: a journal in a Redis that syncs every write, the local index, and Milvus
Lite behind it. The local index is measured alone too, with its writes, a rebuild and its size. Beside them,
on the same vectors: pymilvus on Milvus Lite, and the stores of LangMem and mem0, in environments of their
own.

A search wants the best five of one namespace. The tenant has four, and half of all memories. Vectors are
random, words follow Zipf's law. Embedding is left out of a search's time, and reported.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.texts.memory_search.corpus import Corpus, Timings
from loadtests.texts.memory_search.halves import IndexFigures, measure_index
from loadtests.texts.memory_search.peers import PEERS, PeerFigures, measure_peer, measure_pymilvus
from loadtests.texts.memory_search.whole import WholeFigures, measure_whole
from memserve.memory.texts.embedding import BertEmbedder

BAR_ROWS, BAR_MS = 100_000, 50.0
INDEX_ROWS, WHOLE_ROWS, PEER_ROWS = (1_000, 10_000, 100_000, 1_000_000), (1_000, 10_000, 100_000), (100_000,)
QUICK_ROWS = 2_000
SEARCHES, BUDGET_S, QUICK_BUDGET_S = 300, 20.0, 3.0


def embedding_ms(corpus: Corpus) -> float:
    """The median of the bundled model for a query."""
    embedder = BertEmbedder()
    took = []
    for query in corpus.queries(20, 1000):
        began_s = time.perf_counter()
        embedder.embed([query], query=True)
        took.append((time.perf_counter() - began_s) * 1000)
    return statistics.median(took)


def shown(timings: Timings | None) -> str:
    return "-" if timings is None else f"{timings.p50_ms:.1f} / {timings.p99_ms:.1f}"


def print_some(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table and a blank line, where there are rows."""
    if rows:
        print_table(columns, rows)
        print()


def print_whole(figures: list[WholeFigures]) -> None:
    print_some(
        ("vector memory", "search ms", "beside writes", "writes/s", "batch of 50, ms", "filled/s"),
        [
            (
                f"{row.rows:,}", shown(row.alone), shown(row.writing), f"{row.writes_per_s:.0f}",
                shown(row.batches), f"{row.filled_per_s:.0f}",
            )
            for row in figures
        ],
    )  # fmt: skip


def print_index(figures: list[IndexFigures]) -> None:
    columns = (
        "local index", "vectors ms", "words ms", "both ms", "beside writes", "writes/s", "recall", "cold s",
        "rebuilt/s", "disk B each", "memory B each",
    )  # fmt: skip
    print_some(
        columns,
        [
            (
                f"{row.rows:,}", shown(row.dense), shown(row.words), shown(row.both), shown(row.both_writing),
                f"{row.writes_per_s:.0f}", f"{row.recall:.3f}", f"{row.cold_s:.2f}", f"{row.rows_per_s:.0f}",
                f"{row.disk_bytes_each:.0f}", f"{row.vector_bytes_each:.0f}",
            )
            for row in figures
        ],
    )  # fmt: skip


def print_peers(figures: list[PeerFigures]) -> None:
    print_some(
        ("other stores", "rows", "search ms", "beside writes", "writes/s", "filled/s", "note"),
        [
            (
                row.name, f"{row.rows:,}", shown(row.alone), shown(row.writing), f"{row.writes_per_s:.0f}",
                f"{row.filled_per_s:.0f}", row.note[:80],
            )
            for row in figures
        ],
    )  # fmt: skip


def main() -> int:
    arguments = parser("memory_search", __doc__)
    arguments.add_argument("--rows", type=int, default=0, help="only this many memories")
    arguments.add_argument(
        "--part", choices=("all", "whole", "index", "peers"), default="all", help="measure only this"
    )
    options = arguments.parse_args()
    budget_s = QUICK_BUDGET_S if options.quick else BUDGET_S

    def sizes(part: str, usual: tuple[int, ...]) -> tuple[int, ...]:
        if options.part not in ("all", part):
            return ()
        if options.rows:
            return (options.rows,)
        return (QUICK_ROWS,) if options.quick else usual

    corpus = Corpus()
    embedding = embedding_ms(corpus)
    report(f"embedding a query: {embedding:.1f} ms")
    wholes = [measure_whole(corpus, rows, SEARCHES, budget_s) for rows in sizes("whole", WHOLE_ROWS)]
    indexes = []
    for rows in sizes("index", INDEX_ROWS):
        with tempfile.TemporaryDirectory(prefix="memory-search-") as folder:
            indexes.append(measure_index(Path(folder) / "index", corpus, rows, SEARCHES, budget_s))
    peers = []
    for rows in sizes("peers", PEER_ROWS):
        peers.append(measure_pymilvus(corpus, rows, SEARCHES, budget_s))
        peers += [measure_peer(name, corpus, rows, SEARCHES, budget_s) for name in PEERS]
    print(f"embedding a query with the bundled model, left out below: {embedding:.1f} ms\n")
    print("Searches and batches: p50 / p99.\n")
    print_whole(wholes)
    print_index(indexes)
    print_peers(peers)
    bars = [
        Bar(f"p99 of a search at {row.rows:,} memories beside writes, ms", row.writing.p99_ms, at_most=BAR_MS)
        for row in wholes
        if row.rows == BAR_ROWS or options.quick or options.rows
    ]
    bars += [Bar(f"recall at {row.rows:,} rows", row.recall, at_least=1.0) for row in indexes]
    figures = {
        "embedding_ms": round(embedding, 2),
        "whole": [row.figures() for row in wholes],
        "index": [row.figures() for row in indexes],
        "peers": [row.figures() for row in peers],
    }
    return finish(bars, figures, options.json)


if __name__ == "__main__":
    sys.exit(main())
