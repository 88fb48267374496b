"""The Milvus collection of the vector memory, and every call made on it. Blocking."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import numpy.typing as npt
from pymilvus import DataType, Function, FunctionType, MilvusClient
from pymilvus.exceptions import MilvusException

from memserve.domain import Memory
from memserve.policy.recall.ranking import STOP_WORDS, ScoredRow
from memserve.policy.recall.words import words_of
from memserve.tls.pem import PemFiles

if TYPE_CHECKING:
    from memserve.memory.texts.milvus_lite import MilvusLiteStore

# Another schema or another embedding model gets another name, so that old rows are never read wrongly.
MEMORIES = "memserve_memories_v1"
# memserve 0.1.0 kept the names of namespaces in Milvus, in this collection.
OLD_NAMESPACES = "memserve_namespaces_v1"

_MEMORY_FIELDS = ["memory_id", "namespace", "text", "source", "keywords", "created_s"]
_PARTITIONS = 64
_PAGE_ROWS = 4096

# The longest text with the most and longest keywords.
_WORDS_MAX = 8192 + 16 * 65
_ANALYZER = {"tokenizer": "standard", "filter": ["lowercase", {"type": "stop", "stop_words": STOP_WORDS}]}


class MilvusFailed(Exception):
    """Milvus did not do what it was asked. The message is the client's."""


@contextlib.contextmanager
def milvus_failures() -> Iterator[None]:
    """Turn what pymilvus raises into MilvusFailed. pymilvus lets gRPC's own errors through in some calls."""
    try:
        yield
    except (MilvusException, grpc.RpcError) as error:
        raise MilvusFailed(str(error) or type(error).__name__) from error


@dataclass(frozen=True, slots=True)
class Vectors:
    """What the rows' vectors are."""

    dim: int
    embedder: str = ""
    """The name of the model that embeds; "" for the bundled model."""


@dataclass(frozen=True, slots=True)
class MilvusAccess:
    """What a Milvus server wants to see."""

    token: str = field(default="", repr=False)
    """user:password, or a token. Empty: nothing."""
    tls: PemFiles | None = None
    """For https; read when it connects. None: gRPC's own authorities, and no certificate."""


class MilvusMemories:
    """Memories in Milvus, one partition key for each tenant.

    A local store must be called from one thread at a time: Milvus Lite is not safe under concurrent writes,
    and a search during a flush misses the rows that are on their way to disk. A remote store may be called
    from several threads. Every method takes at most `timeout_s` seconds, and raises OSError or what
    `milvus_failures` catches.

    Filters hold only digests and namespace names. The caller must have checked the names with
    `check_namespace`, because a name stands in a filter as it is.
    """

    def __init__(self, uri: str, access: MilvusAccess, vectors: Vectors, *, timeout_s: float) -> None:
        """Connect and `prepare`.

        uri: a path that ends in `.db` (Milvus Lite, a folder), else `http(s)://host:port`.
        Raises VectorStoreHeld and VectorStoreDamaged of a local store.
        """
        self.is_local = is_local_uri(uri)
        self._dim = vectors.dim
        self._name = MEMORIES + (f"_{vectors.embedder}" if vectors.embedder else "")
        self._lite: MilvusLiteStore | None = None
        # pymilvus logs a copy of every exception that it raises, stack trace included.
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
        if self.is_local:
            # Imported here, because a gateway that uses a Milvus server needs no pyarrow.
            from memserve.memory.texts.milvus_lite import MilvusLiteStore

            self._lite = MilvusLiteStore(uri)
            uri = self._lite.uri
        try:
            # A connection of its own: pymilvus would share one that was made with older certificates.
            self._client = MilvusClient(
                uri, token=access.token, timeout=timeout_s, dedicated=True, **_tls_arguments(uri, access.tls)
            )
            self.prepare(timeout_s=timeout_s)
        except BaseException:
            self.close(clean=False)
            raise

    def prepare(self, *, timeout_s: float) -> None:
        """Create the collection and its indexes where they are missing, and have Milvus load the collection.

        Repeating it is cheap.
        """
        if not self._client.has_collection(self._name, timeout=timeout_s):
            # Strong: every gateway sees what another gateway has stored or forgotten.
            self._client.create_collection(
                self._name,
                schema=_memories_schema(self._dim),
                consistency_level="Strong",
                num_partitions=_PARTITIONS,
                timeout=timeout_s,
            )
        # FLAT is exact, and keeps its recall under a filter, however small the tenant's share is. A graph
        # index loses hits under such a filter.
        for column, index_type, metric in (
            ("dense", "FLAT", "COSINE"),
            ("sparse", "SPARSE_INVERTED_INDEX", "BM25"),
        ):
            if not self._client.list_indexes(self._name, field_name=column):
                index = MilvusClient.prepare_index_params()
                index.add_index(column, index_type=index_type, metric_type=metric)
                # Loading waits for the index. The client's own wait sleeps half a second even when the index
                # is ready.
                self._client.create_index(self._name, index, sync=False, timeout=timeout_s)
        self._client.load_collection(self._name, timeout=timeout_s)

    def get(self, key: str, *, timeout_s: float) -> Memory | None:
        """key: as `memory_key` makes it."""
        return self.get_many([key], timeout_s=timeout_s).get(key)

    def get_many(self, keys: Sequence[str], *, timeout_s: float) -> dict[str, Memory]:
        """The memories that exist, by key. At most a thousand keys."""
        rows = self._client.query(
            self._name,
            filter=f"pk in {json.dumps(list(keys))}",
            output_fields=["pk", *_MEMORY_FIELDS],
            timeout=timeout_s,
        )
        return {row["pk"]: _memory(row) for row in rows}

    def put(
        self, rows: Sequence[tuple[str, str, Memory, npt.NDArray[np.float32]]], *, timeout_s: float
    ) -> None:
        """Store memories. An old memory with the same key is replaced.

        rows: key, tenant key, memory and its [dim] vector.
        """
        self._client.upsert(
            self._name,
            [
                {
                    "pk": key,
                    "tenant_key": tenant,
                    "memory_id": memory.memory_id,
                    "namespace": memory.namespace,
                    "text": memory.text,
                    "source": memory.source,
                    "keywords": list(memory.keywords),
                    "created_s": memory.created_s,
                    "words": _indexed_words(memory, self.is_local),
                    "dense": vector.tolist(),
                }
                for key, tenant, memory, vector in rows
            ],
            timeout=timeout_s,
        )

    def delete(self, keys: Sequence[str], *, timeout_s: float) -> None:
        """Keys that do not exist are passed over."""
        self._client.delete(self._name, ids=list(keys), timeout=timeout_s)

    def search_dense(
        self,
        tenant: str,
        namespaces: Sequence[str],
        vector: npt.NDArray[np.float32],
        limit: int,
        *,
        timeout_s: float,
    ) -> list[ScoredRow]:
        """The nearest memories by cosine, [-1, 1], best first."""
        (hits,) = self._search(tenant, namespaces, "dense", "COSINE", [vector.tolist()], limit, timeout_s)
        return hits

    def search_words(
        self, tenant: str, namespaces: Sequence[str], queries: Sequence[str], limit: int, *, timeout_s: float
    ) -> list[list[Memory]]:
        """The best memories by BM25 over text and keywords, for each query.

        The scores are left out. Milvus Lite computes them from the word statistics of each segment, so that
        scores of two segments do not compare.
        """
        answers = self._search(tenant, namespaces, "sparse", "BM25", list(queries), limit, timeout_s)
        return [[memory for memory, score in hits if score] for hits in answers]

    def row_count(self, *, timeout_s: float) -> int:
        """How many memories all tenants have."""
        rows = self._client.query(self._name, filter="", output_fields=["count(*)"], timeout=timeout_s)
        return int(rows[0]["count(*)"])

    def counts(self, *, timeout_s: float) -> dict[tuple[str, str], int]:
        """The number of memories by tenant key and namespace. Slow, because every row is read.

        Namespaces of an older layout are part of it, also the empty ones.
        """
        counts: Counter[tuple[str, str]] = Counter()
        for collection, worth in ((OLD_NAMESPACES, 0), (self._name, 1)):
            if not self._client.has_collection(collection, timeout=timeout_s):
                continue
            if collection == OLD_NAMESPACES:
                self._client.load_collection(collection, timeout=timeout_s)
            pages = self._client.query_iterator(
                collection,
                batch_size=_PAGE_ROWS,
                output_fields=["tenant_key", "namespace"],
                timeout=timeout_s,
            )
            while page := pages.next():
                for row in page:
                    counts[row["tenant_key"], row["namespace"]] += worth
            pages.close()
        return dict(counts)

    def flush(self, *, timeout_s: float) -> None:
        """Turn the rows of the write-ahead log into indexed segments.

        Milvus Lite scans rows in Python until they are flushed. A flush that returns proves nothing: `sync`
        brings a local store's files to disk, and `get_many` says whether the rows exist.
        """
        self._client.flush(self._name, timeout=timeout_s)

    def sync(self) -> None:
        """Sync a local store's files. Other calls may go on meanwhile. Raises OSError."""
        if self._lite is not None:
            self._lite.sync()

    def copy_to(self, target: Path) -> None:
        """Copy a local store's files. Nothing may be written to the store meanwhile."""
        assert self._lite is not None
        self._lite.copy_to(target)

    def probe(self) -> None:
        """Raises OSError when a local store could not be opened again after it is closed."""
        if self._lite is not None:
            self._lite.probe()

    def close(self, *, clean: bool) -> None:
        """Disconnect, and release a local store's folder.

        clean: the last flush is verified.
        """
        if hasattr(self, "_client"):
            self._client.close()
        if self._lite is not None:
            self._lite.close(clean=clean)

    def _search(
        self,
        tenant: str,
        namespaces: Sequence[str],
        field: str,
        metric: str,
        queries: Sequence[object],
        limit: int,
        timeout_s: float,
    ) -> list[list[ScoredRow]]:
        answers: list[list[dict[str, Any]]] = self._client.search(
            self._name,
            data=queries,
            anns_field=field,
            search_params={"metric_type": metric},
            filter=_scope(tenant, namespaces),
            # A Milvus server finds the partition by the filter, and refuses a partition by name.
            partition_names=None if self._lite is None else [self._lite.partition_of(tenant_key(tenant))],
            limit=limit,
            output_fields=_MEMORY_FIELDS,
            timeout=timeout_s,
        )
        return [[(_memory(hit["entity"]), float(hit["distance"])) for hit in hits] for hits in answers]


def _tls_arguments(uri: str, tls: PemFiles | None) -> dict[str, str]:
    if tls is None or not uri.startswith("https://"):
        return {}
    return {
        "ca_pem_path": str(tls.authorities),
        "client_pem_path": str(tls.certificate),
        "client_key_path": str(tls.key),
    }


def is_local_uri(uri: str) -> bool:
    """True for a path, which means Milvus Lite."""
    return "://" not in uri


def tenant_key(tenant: str) -> str:
    """The partition key: 64 hex digits, which are safe in any filter whatever the tenant's name is."""
    return hashlib.sha256(tenant.encode()).hexdigest()


def memory_key(tenant: str, namespace: str, memory_id: str) -> str:
    return _digest(tenant, namespace, memory_id)


def _digest(*parts: str) -> str:
    # JSON, so that no two lists of parts have the same encoding.
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _scope(tenant: str, namespaces: Sequence[str]) -> str:
    names = ", ".join(f'"{name}"' for name in namespaces)
    return f'tenant_key == "{tenant_key(tenant)}" and namespace in [{names}]'


def _memory(row: Any) -> Memory:
    return Memory(
        memory_id=row["memory_id"],
        namespace=row["namespace"],
        text=row["text"],
        source=row["source"],
        keywords=tuple(row["keywords"]),
        created_s=row["created_s"],
    )


def _indexed_words(memory: Memory, is_local: bool) -> str:
    """The words that the search by word finds the memory by.

    A long text in a script without spaces has more words than fit. The end is left out.
    """
    text = "\n".join((memory.text, *memory.keywords))
    if text.isascii():
        return text
    # Milvus Lite counts characters. A Milvus server counts bytes.
    size = len if is_local else lambda word: len(word.encode())
    room, kept = _WORDS_MAX, []
    for word in words_of(text):
        room -= size(word) + 1
        if room < 0:
            break
        kept.append(word)
    return " ".join(kept)


def _memories_schema(dim: int) -> Any:
    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("pk", DataType.VARCHAR, is_primary=True, max_length=64)
    schema.add_field("tenant_key", DataType.VARCHAR, is_partition_key=True, max_length=64)
    schema.add_field("memory_id", DataType.VARCHAR, max_length=128)
    schema.add_field("namespace", DataType.VARCHAR, max_length=64)
    schema.add_field("text", DataType.VARCHAR, max_length=8192)
    schema.add_field("source", DataType.VARCHAR, max_length=512)
    schema.add_field(
        "keywords", DataType.ARRAY, element_type=DataType.VARCHAR, max_capacity=16, max_length=64
    )
    schema.add_field("created_s", DataType.DOUBLE)
    schema.add_field(
        "words", DataType.VARCHAR, max_length=_WORDS_MAX, enable_analyzer=True, analyzer_params=_ANALYZER
    )
    schema.add_field("dense", DataType.FLOAT_VECTOR, dim=dim)
    schema.add_field("sparse", DataType.SPARSE_FLOAT_VECTOR)
    schema.add_function(
        Function(
            name="bm25",
            function_type=FunctionType.BM25,
            input_field_names=["words"],
            output_field_names=["sparse"],
        )
    )
    return schema
