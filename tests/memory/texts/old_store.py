"""Writes a store as memserve 0.1.0 did: one row a memory, in the collection of its schema."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pymilvus import DataType, Function, FunctionType, MilvusClient

from memserve.memory.texts.milvus_lite import MilvusLiteStore
from memserve.memory.texts.milvus_old import OLD_MEMORIES
from memserve.memory.texts.records import Record
from memserve.policy.recall.ranking import STOP_WORDS

TIMEOUT_S = 30.0
_WORDS_MAX = 8192 + 16 * 65
_ANALYZER = {"tokenizer": "standard", "filter": ["lowercase", {"type": "stop", "stop_words": STOP_WORDS}]}


def write_old_store(uri: str, dim: int, records: Sequence[Record], *, flush: bool = True) -> None:
    """uri: a path (Milvus Lite), or a server's address. Of each record the current version is written."""
    lite = MilvusLiteStore(uri) if "://" not in uri else None
    client = MilvusClient(uri if lite is None else lite.uri, timeout=TIMEOUT_S, dedicated=True)
    client.create_collection(
        OLD_MEMORIES, schema=_schema(dim), consistency_level="Strong", num_partitions=64, timeout=TIMEOUT_S
    )
    for column, index_type, metric in (
        ("dense", "FLAT", "COSINE"),
        ("sparse", "SPARSE_INVERTED_INDEX", "BM25"),
    ):
        index = MilvusClient.prepare_index_params()
        index.add_index(column, index_type=index_type, metric_type=metric)
        client.create_index(OLD_MEMORIES, index, sync=False, timeout=TIMEOUT_S)
    client.load_collection(OLD_MEMORIES, timeout=TIMEOUT_S)
    for start in range(0, len(records), 500):
        rows = [_row(record) for record in records[start : start + 500]]
        client.upsert(OLD_MEMORIES, rows, timeout=TIMEOUT_S)
    if flush:
        client.flush(OLD_MEMORIES, timeout=TIMEOUT_S)
    client.close()
    if lite is not None:
        lite.close(clean=flush)


def _row(record: Record) -> dict[str, Any]:
    memory = record.memory
    assert record.vector is not None
    return {
        "pk": record.key,
        "tenant_key": record.tenant_key,
        "memory_id": memory.memory_id,
        "namespace": memory.namespace,
        "text": memory.text,
        "source": memory.source,
        "keywords": list(memory.keywords),
        "created_s": memory.created_s,
        "words": "\n".join((memory.text, *memory.keywords)),
        "dense": np.asarray(record.vector).tolist(),
    }


def _schema(dim: int) -> Any:
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
