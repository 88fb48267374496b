"""Other people's stores with the same vectors: pymilvus on Milvus Lite, and what LangMem and mem0 keep
memories in. Neither needs a language model when it is called directly.

pymilvus runs here. The other two run in environments of their own (`peer_worker.py`).
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pymilvus import DataType, MilvusClient

from loadtests.harness.figures import report
from loadtests.harness.outside import installed
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

NAMESPACE = "n1"
PEERS = {
    "langmem": ("langgraph-checkpoint==4.3.2", "numpy==2.3.5"),
    "mem0": ("mem0ai==2.2.1", "faiss-cpu==1.15.1"),
}
WORKER = Path(__file__).with_name("peer_worker.py")
TIMEOUT_S = 400
_COLLECTION = "memories"


@dataclass(frozen=True, slots=True)
class PeerFigures:
    """Of one store and number of rows."""

    name: str
    rows: int
    filled_per_s: float
    alone: Timings | None
    """None: it could not be measured, and `note` says why."""
    writing: Timings | None
    writes_per_s: float
    note: str = ""

    def figures(self) -> dict[str, object]:
        return {
            "name": self.name, "rows": self.rows, "filled_per_s": round(self.filled_per_s),
            "alone": self.alone and self.alone.figures(), "writing": self.writing and self.writing.figures(),
            "writes_per_s": round(self.writes_per_s), "note": self.note,
        }  # fmt: skip


def measure_pymilvus(corpus: Corpus, rows: int, searches: int, budget_s: float) -> PeerFigures:
    """A collection with an exact index, searched by vector with a filter of tenant and namespace. It has no
    words, and its rows are flushed before the searches alone."""
    with tempfile.TemporaryDirectory(prefix="memory-search-") as folder:
        client = MilvusClient(f"{folder}/plain.db")
        _create(client)
        began_s = time.perf_counter()
        for part in corpus.parts(rows):
            client.insert(_COLLECTION, _rows(corpus, part.start, len(part)))
        client.flush(_COLLECTION)
        filled_per_s = rows / (time.perf_counter() - began_s)
        client.load_collection(_COLLECTION)
        vectors = [vector_of(query).tolist() for query in corpus.queries(searches, rows)]

        def search(number: int) -> object:
            return client.search(
                _COLLECTION,
                data=[vectors[number % searches]],
                anns_field="vector",
                filter=f'tenant == "{TENANT}" and namespace == "{NAMESPACE}"',
                limit=LIMIT,
                output_fields=["text"],
            )

        search(0)
        alone = timed(search, searches, budget_s)
        with Writing(lambda first, count: client.insert(_COLLECTION, _rows(corpus, first, count))) as writing:
            beside = timed(search, 10 * searches, budget_s)
        client.close()
    return PeerFigures("pymilvus", rows, filled_per_s, alone, beside, writing.writes_per_s)


def measure_peer(name: str, corpus: Corpus, rows: int, searches: int, budget_s: float) -> PeerFigures:
    """The store that this library keeps memories in, called directly with the same vectors."""
    package, *more = PEERS[name]
    try:
        python = installed(package, "python", *more)
    except (subprocess.CalledProcessError, OSError) as error:
        return PeerFigures(name, rows, 0.0, None, None, 0.0, f"{package} is not installed: {error}")
    with tempfile.TemporaryDirectory(prefix="memory-search-") as folder:
        _write_data(Path(folder), corpus, rows, searches)
        command = [str(python), str(WORKER), name, folder, str(rows), str(budget_s)]
        try:
            answer = subprocess.run(
                command, capture_output=True, encoding="utf-8", timeout=TIMEOUT_S, check=True
            )
        except subprocess.SubprocessError as error:
            why = str(getattr(error, "stderr", "") or error).strip().splitlines()[-1]
            report(f"{name}: {why}")
            return PeerFigures(name, rows, 0.0, None, None, 0.0, why)
    figures = json.loads(answer.stdout.splitlines()[-1])
    return PeerFigures(
        name, rows, figures["filled_per_s"], Timings(tuple(figures["alone"])),
        Timings(tuple(figures["writing"])), figures["writes_per_s"], f"finds {figures['found']:g} of {LIMIT}",
    )  # fmt: skip


def _write_data(folder: Path, corpus: Corpus, rows: int, searches: int) -> None:
    """The vectors, owners and queries, and vectors for what is written beside the searches."""
    texts = [text for part in corpus.parts(rows) for text in corpus.texts(part.start, len(part))]
    np.save(folder / "vectors.npy", np.stack([vector_of(text) for text in texts]))
    queries = corpus.queries(searches, rows)
    np.save(folder / "queries.npy", np.stack([vector_of(query) for query in queries]))
    owners = [f"{corpus.tenant(number)}/{corpus.namespace(number)}" for number in range(rows)]
    content = {"texts": texts, "owners": owners, "searched": f"{TENANT}/{NAMESPACE}"}
    (folder / "corpus.json").write_text(json.dumps(content), encoding="utf-8")


def _create(client: MilvusClient) -> None:
    schema = MilvusClient.create_schema()
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("tenant", DataType.VARCHAR, max_length=64)
    schema.add_field("namespace", DataType.VARCHAR, max_length=64)
    schema.add_field("text", DataType.VARCHAR, max_length=8192)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=DIM)
    index = MilvusClient.prepare_index_params()
    index.add_index("vector", index_type="FLAT", metric_type="COSINE")
    client.create_collection(_COLLECTION, schema=schema, index_params=index)


def _rows(corpus: Corpus, first: int, count: int) -> list[dict[str, object]]:
    return [
        {
            "id": number, "tenant": corpus.tenant(number), "namespace": corpus.namespace(number),
            "text": text, "vector": vector_of(text).tolist(),
        }
        for number, text in enumerate(corpus.texts(first, count), first)
    ]  # fmt: skip
