"""The two Milvus collections of the vector memory, and every call made on them. Blocking."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pymilvus import DataType, Function, FunctionType, MilvusClient

from memserve.domain import Memory
from memserve.policy.ranking import STOP_WORDS, ScoredRow

# A change of schema or of the embedding model takes a new name, so that old rows are never read wrongly.
MEMORIES = "memserve_memories_v1"
NAMESPACES = "memserve_namespaces_v1"

_MEMORY_FIELDS = ["memory_id", "namespace", "text", "source", "keywords", "created_s"]
_PARTITIONS = 64
_NAMESPACES_PER_TENANT_READ = 16_384  # Milvus' own limit on the rows of one query

_ANALYZER = {"tokenizer": "standard", "filter": ["lowercase", {"type": "stop", "stop_words": STOP_WORDS}]}


class MilvusMemories:
    """Memories and namespaces in Milvus, one partition key per tenant.

    Milvus Lite is not safe under concurrent writes, and a search that meets a flush misses the rows that are on their way to disk: a local
    store must be called from one thread at a time. A remote one may be called from several.
    Every method may raise MilvusException or grpc.RpcError, and takes at most `timeout_s` seconds.

    Filters hold only digests and namespace names, and the caller must have checked those names against `[a-z0-9][a-z0-9._-]*`.
    """

    def __init__(self, uri: str, token: str, *, dim: int, timeout_s: float) -> None:
        """Connect and `prepare`. uri: a path that ends in `.db` (Milvus Lite, a folder), else `http(s)://host:port`."""
        self.is_local = is_local_uri(uri)
        self._uri = uri
        if self.is_local:
            Path(uri).parent.mkdir(parents=True, exist_ok=True)
        _quiet_milvus_logs()
        self._dim = dim
        self._client = MilvusClient(uri, token=token, timeout=timeout_s)
        try:
            self.prepare(timeout_s=timeout_s)
            if self.is_local:
                self.flush(timeout_s=timeout_s)  # rows that a killed process left in the write-ahead log
        except BaseException:
            self.close()
            raise

    def prepare(self, *, timeout_s: float) -> None:
        """Create what is missing of the collections and their indexes, and have Milvus load them. Repeating it is cheap."""
        for name, schema, indexes in (
            (NAMESPACES, _namespaces_schema(), [("unused", "FLAT", "L2")]),
            # FLAT is exact, and a filter costs it no recall, however small a tenant's share; a graph index loses hits there.
            (MEMORIES, _memories_schema(self._dim), [("dense", "FLAT", "COSINE"), ("sparse", "SPARSE_INVERTED_INDEX", "BM25")]),
        ):
            if not self._client.has_collection(name, timeout=timeout_s):
                # Strong: what one gateway acknowledged, stored or forgotten, every gateway sees.
                self._client.create_collection(
                    name, schema=schema, consistency_level="Strong", num_partitions=_PARTITIONS, timeout=timeout_s
                )
            for field, index_type, metric in indexes:
                if not self._client.list_indexes(name, field_name=field):
                    index = MilvusClient.prepare_index_params()
                    index.add_index(field, index_type=index_type, metric_type=metric)
                    # Loading waits for the index; the client's own wait sleeps half a second even when it is there.
                    self._client.create_index(name, index, sync=False, timeout=timeout_s)
            self._client.load_collection(name, timeout=timeout_s)

    def get(self, tenant: str, namespace: str, memory_id: str, *, timeout_s: float) -> Memory | None:
        rows = self._client.query(
            MEMORIES, filter=f'pk in ["{memory_key(tenant, namespace, memory_id)}"]', output_fields=_MEMORY_FIELDS, timeout=timeout_s
        )
        return _memory(rows[0]) if rows else None

    def put(self, tenant: str, memory: Memory, vector: npt.NDArray[np.float32], *, timeout_s: float) -> None:
        """Store one memory. On return it is in the write-ahead log: it outlives the process (not, in Milvus Lite, a power cut)."""
        row = {
            "pk": memory_key(tenant, memory.namespace, memory.memory_id),
            "tenant_key": tenant_key(tenant),
            "memory_id": memory.memory_id,
            "namespace": memory.namespace,
            "text": memory.text,
            "source": memory.source,
            "keywords": list(memory.keywords),
            "created_s": memory.created_s,
            "words": "\n".join((memory.text, *memory.keywords)),
            "dense": vector.tolist(),
        }
        self._client.upsert(MEMORIES, [row], timeout=timeout_s)

    def delete(self, tenant: str, namespace: str, memory_id: str, *, timeout_s: float) -> None:
        self._client.delete(MEMORIES, ids=[memory_key(tenant, namespace, memory_id)], timeout=timeout_s)

    def search_dense(
        self, tenant: str, namespaces: Sequence[str], vector: npt.NDArray[np.float32], limit: int, *, timeout_s: float
    ) -> list[ScoredRow]:
        """The nearest memories by cosine, [-1, 1], best first."""
        (hits,) = self._search(tenant, namespaces, "dense", "COSINE", [vector.tolist()], limit, timeout_s)
        return hits

    def search_words(
        self, tenant: str, namespaces: Sequence[str], queries: Sequence[str], limit: int, *, timeout_s: float
    ) -> list[list[Memory]]:
        """The best memories by BM25 over text and keywords, for each query.

        The scores are left out: Milvus Lite computes them from each segment's own word statistics, so those of two segments do not compare.
        """
        answers = self._search(tenant, namespaces, "sparse", "BM25", list(queries), limit, timeout_s)
        return [[memory for memory, score in hits if score] for hits in answers]

    def add_namespace(self, tenant: str, namespace: str, created_s: float, *, timeout_s: float) -> None:
        row = {
            "pk": namespace_key(tenant, namespace),
            "tenant_key": tenant_key(tenant),
            "namespace": namespace,
            "created_s": created_s,
            "unused": [0.0, 0.0],
        }
        self._client.upsert(NAMESPACES, [row], timeout=timeout_s)

    def list_namespaces(self, tenant: str, *, timeout_s: float) -> list[str]:
        rows = self._client.query(
            NAMESPACES,
            filter=f'tenant_key == "{tenant_key(tenant)}"',
            output_fields=["namespace"],
            limit=_NAMESPACES_PER_TENANT_READ,
            timeout=timeout_s,
        )
        return sorted({str(row["namespace"]) for row in rows})

    def has_namespace(self, tenant: str, namespace: str, *, timeout_s: float) -> bool:
        rows = self._client.query(
            NAMESPACES, filter=f'pk in ["{namespace_key(tenant, namespace)}"]', output_fields=["namespace"], timeout=timeout_s
        )
        return bool(rows)

    def count(self, tenant: str, namespace: str, *, timeout_s: float) -> int:
        rows = self._client.query(MEMORIES, filter=_scope(tenant, [namespace]), output_fields=["count(*)"], timeout=timeout_s)
        return int(rows[0]["count(*)"])

    def flush(self, *, timeout_s: float) -> None:
        """Turn the rows of the write-ahead log into indexed segments. Milvus Lite scans rows in Python until then."""
        for collection in (NAMESPACES, MEMORIES):
            self._client.flush(collection, timeout=timeout_s)

    def close(self) -> None:
        """Disconnect; a local store is flushed and its folder's lock released."""
        self._client.close()
        if self.is_local:
            # The client leaves the server, which runs in this process, to atexit.
            from milvus_lite.server_manager import server_manager_instance

            server_manager_instance.release_server(self._uri)

    def _search(
        self, tenant: str, namespaces: Sequence[str], field: str, metric: str, queries: Sequence[object], limit: int, timeout_s: float
    ) -> list[list[ScoredRow]]:
        answers: list[list[dict[str, Any]]] = self._client.search(
            MEMORIES,
            data=queries,
            anns_field=field,
            search_params={"metric_type": metric},
            filter=_scope(tenant, namespaces),
            limit=limit,
            output_fields=_MEMORY_FIELDS,
            timeout=timeout_s,
        )
        return [[(_memory(hit["entity"]), float(hit["distance"])) for hit in hits] for hits in answers]


def is_local_uri(uri: str) -> bool:
    """True for a path, which means Milvus Lite."""
    return "://" not in uri


def tenant_key(tenant: str) -> str:
    """64 hex digits: the partition key, safe in any filter, whatever the tenant is called."""
    return hashlib.sha256(tenant.encode()).hexdigest()


def namespace_key(tenant: str, namespace: str) -> str:
    return _digest(tenant, namespace)


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


def _memories_schema(dim: int) -> Any:
    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("pk", DataType.VARCHAR, is_primary=True, max_length=64)
    schema.add_field("tenant_key", DataType.VARCHAR, is_partition_key=True, max_length=64)
    schema.add_field("memory_id", DataType.VARCHAR, max_length=128)
    schema.add_field("namespace", DataType.VARCHAR, max_length=64)
    schema.add_field("text", DataType.VARCHAR, max_length=8192)
    schema.add_field("source", DataType.VARCHAR, max_length=512)
    schema.add_field("keywords", DataType.ARRAY, element_type=DataType.VARCHAR, max_capacity=16, max_length=64)
    schema.add_field("created_s", DataType.DOUBLE)
    schema.add_field("words", DataType.VARCHAR, max_length=8192 + 16 * 65, enable_analyzer=True, analyzer_params=_ANALYZER)
    schema.add_field("dense", DataType.FLOAT_VECTOR, dim=dim)
    schema.add_field("sparse", DataType.SPARSE_FLOAT_VECTOR)
    schema.add_function(Function(name="bm25", function_type=FunctionType.BM25, input_field_names=["words"], output_field_names=["sparse"]))
    return schema


def _namespaces_schema() -> Any:
    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("pk", DataType.VARCHAR, is_primary=True, max_length=64)
    schema.add_field("tenant_key", DataType.VARCHAR, is_partition_key=True, max_length=64)
    schema.add_field("namespace", DataType.VARCHAR, max_length=64)
    schema.add_field("created_s", DataType.DOUBLE)
    schema.add_field("unused", DataType.FLOAT_VECTOR, dim=2)  # Milvus wants a vector in every collection
    return schema


def _quiet_milvus_logs() -> None:
    # Every failure comes back as an exception too; without this pymilvus prints its own copy, stack trace included, to stderr.
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    logging.getLogger("milvus_lite").setLevel(logging.CRITICAL)
