"""Measures a store of another library, in that library's environment. It needs nothing of memserve.

Arguments: langmem or mem0, the folder with the data, rows, seconds for each measurement. The last line of the
output is a JSON object.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

LIMIT, BATCH, WRITES_PER_S, PART = 5, 50, 500, 1000


class Store(Protocol):
    """What is measured."""

    def add(self, ids: Sequence[int], places: Sequence[int]) -> None:
        """Keep memories. places: whose text, owner and vector they have."""

    def search(self, query: int) -> Sequence[object]:
        """The nearest LIMIT of one namespace, as far as the store finds them."""


class LangGraphStore:
    """LangGraph's InMemoryStore, which LangMem keeps memories in when nothing else is configured."""

    def __init__(self, content: dict[str, Any], vectors: Any, queries: Any) -> None:
        from langgraph.store.base import PutOp
        from langgraph.store.memory import InMemoryStore

        self._put_op, self._content = PutOp, content
        self._searched = tuple(content["searched"].split("/"))

        def embed(texts: Sequence[str]) -> list[list[float]]:
            return [
                (queries[int(text[1:])] if text[0] == "q" else vectors[int(text[1:])]).tolist()
                for text in texts
            ]

        self._store = InMemoryStore(index={"dims": vectors.shape[1], "embed": embed, "fields": ["at"]})

    def add(self, ids: Sequence[int], places: Sequence[int]) -> None:
        self._store.batch(
            [
                self._put_op(
                    tuple(self._content["owners"][place].split("/")),
                    str(number),
                    {"text": self._content["texts"][place], "at": f"v{place}"},
                )
                for number, place in zip(ids, places, strict=True)
            ]
        )

    def search(self, query: int) -> Sequence[object]:
        return list(self._store.search(self._searched, query=f"q{query}", limit=LIMIT))


class Mem0Faiss:
    """mem0's store on faiss, in a folder. It writes its files at every call."""

    def __init__(self, content: dict[str, Any], vectors: Any, queries: Any, folder: Path) -> None:
        from mem0.vector_stores.faiss import FAISS

        self._content, self._vectors, self._queries = content, vectors, queries
        self._store = FAISS(
            "memories", path=str(folder), distance_strategy="cosine", embedding_model_dims=vectors.shape[1]
        )

    def add(self, ids: Sequence[int], places: Sequence[int]) -> None:
        self._store.insert(
            [self._vectors[place].tolist() for place in places],
            [
                {"data": self._content["texts"][place], "user_id": self._content["owners"][place]}
                for place in places
            ],
            [str(number) for number in ids],
        )

    def search(self, query: int) -> Sequence[object]:
        filters = {"user_id": self._content["searched"]}
        return list(self._store.search("", self._queries[query].tolist(), LIMIT, filters))


def timed(search: Callable[[int], object], queries: int, budget_s: float) -> list[float]:
    seconds: list[float] = []
    ends_s = time.perf_counter() + budget_s
    while len(seconds) < 5 or (len(seconds) < 10 * queries and time.perf_counter() < ends_s):
        began_s = time.perf_counter()
        search(len(seconds) % queries)
        seconds.append(time.perf_counter() - began_s)
    return seconds


def measure(store: Store, rows: int, queries: int, budget_s: float) -> dict[str, object]:
    began_s = time.perf_counter()
    for first in range(0, rows, PART):
        places = range(first, min(rows, first + PART))
        store.add(places, places)
    filled_per_s = rows / (time.perf_counter() - began_s)
    found = sum(len(store.search(query)) for query in range(20)) / 20
    alone = timed(store.search, queries, budget_s)
    ended = threading.Event()
    batches = 0

    def write() -> None:
        nonlocal batches
        due_s = time.perf_counter()
        while not ended.is_set():
            first = rows + batches * BATCH
            store.add(range(first, first + BATCH), [number % rows for number in range(first, first + BATCH)])
            batches += 1
            due_s += BATCH / WRITES_PER_S
            ended.wait(max(0.0, due_s - time.perf_counter()))

    began_s = time.perf_counter()
    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        writing = timed(store.search, queries, budget_s)
    finally:
        ended.set()
        thread.join()
    writes_per_s = batches * BATCH / (time.perf_counter() - began_s)
    return {
        "filled_per_s": filled_per_s, "found": found, "alone": alone, "writing": writing,
        "writes_per_s": writes_per_s,
    }  # fmt: skip


def main() -> None:
    name, folder, rows, budget_s = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    content = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    vectors, queries = np.load(folder / "vectors.npy"), np.load(folder / "queries.npy")
    store: Store
    if name == "langmem":
        store = LangGraphStore(content, vectors, queries)
    else:
        store = Mem0Faiss(content, vectors, queries, folder / "mem0")
    print(json.dumps(measure(store, rows, len(queries), budget_s)))


if __name__ == "__main__":
    main()
