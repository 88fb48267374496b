"""The schema of the collection of memories, its rows, and the filters over them.

A record is one row. Its history is JSON in two columns: `current` has the version that holds now, and `older`
the versions before it, so that a search reads the short one alone. Texts are nowhere else but in `words`,
which the search by word is made of.

A filter holds only digests, checked names, members of enumerations and numbers. What a caller wrote (an id, a
document's name) stands in a filter as its digest.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from pymilvus import DataType, Function, FunctionType, MilvusClient

from memserve.domain import Link, LinkKind, Memory, MemoryHistory
from memserve.domain.names import is_name
from memserve.memory.texts.records import Record, decode_history, encode_history
from memserve.memory.texts.store import Scope
from memserve.policy.recall.ranking import STOP_WORDS, memory_words

# Another schema or another embedding model gets another name, so that old rows are never read wrongly.
MEMORIES = "memserve_memories_v2"
PARTITIONS = 64

# Milvus' longest VARCHAR, in bytes.
VARCHAR_MAX_BYTES = 65_535
# Of a history's JSON in one element of an array.
CHUNK_BYTES = 32 << 10
CHUNKS_MAX = 32
# Different links of one memory by which it is found from their other end.
TARGETS_MAX = 512
# A longer name of a document is cut where documents are ordered by name.
WITHIN_MAX_BYTES = 512

CURRENT_COLUMNS = ["pk", "current"]
RECORD_COLUMNS = ["pk", "tenant_key", "current", "older"]
VECTOR_COLUMN = "dense"
ORDER_COLUMNS = ["pk", "namespace", "memory_id", "created_s", "updated_s", "within", "position"]

_STOP_WORDS = frozenset(STOP_WORDS)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NOTHING = 'pk == ""'

Row = dict[str, Any]


def collection_name(embedder: str) -> str:
    """embedder: the name of the model that embeds; "" for the bundled one."""
    return MEMORIES + (f"_{embedder}" if embedder else "")


def is_digest(text: str) -> bool:
    """64 hex digits."""
    return _DIGEST.fullmatch(text) is not None


# Rows


def row_of(record: Record, *, with_words: bool) -> Row:
    """The row that keeps a record, whose vector is there. with_words: whether words shall find it."""
    memory, history = record.memory, record.history
    assert record.vector is not None
    return {
        "pk": record.key,
        "tenant_key": record.tenant_key,
        "memory_id": memory.memory_id,
        "namespace": memory.namespace,
        "state": memory.state.value,
        "kind": memory.kind.value,
        "created_s": memory.created_s,
        "updated_s": memory.updated_s,
        "within": _cut(memory.place.within, WITHIN_MAX_BYTES),
        "within_key": _within_key(memory.place.within),
        "position": memory.place.position,
        "targets": _targets(memory),
        "digest": history_digest(history),
        "current": _chunks(encode_history(MemoryHistory(history.versions[-1:]))),
        "older": _chunks(encode_history(MemoryHistory(history.versions[:-1], history.dropped))),
        "words": " ".join(indexed_words(memory)) if with_words else "",
        "dense": np.asarray(record.vector, np.float32).tolist(),
    }


def record_from(row: Row) -> Record:
    """Reads a row with RECORD_COLUMNS, and with `dense` where it was asked for."""
    older = decode_history("".join(row["older"]))
    current = decode_history("".join(row["current"]))
    vector = row.get("dense")
    return Record(
        row["pk"],
        row["tenant_key"],
        MemoryHistory(older.versions + current.versions, older.dropped),
        None if vector is None else np.asarray(vector, np.float32),
    )


def memory_of(row: Row) -> Memory:
    """Reads a row with CURRENT_COLUMNS."""
    return decode_history("".join(row["current"])).current


def history_digest(history: MemoryHistory) -> str:
    """64 hex digits: two records with the same one are the same, but for their vectors."""
    return hashlib.sha256(encode_history(history).encode()).hexdigest()


def indexed_words(memory: Memory) -> list[str]:
    """The words that the search by word finds the memory by, in order.

    Some texts of 8 KiB have more words than a VARCHAR has room for. The end is left out.
    """
    room, kept = VARCHAR_MAX_BYTES, []
    for word in memory_words(memory):
        if word in _STOP_WORDS:
            continue
        room -= len(word.encode()) + 1
        if room < 0:
            break
        kept.append(word)
    return kept


def _chunks(text: str) -> list[str]:
    """The text in pieces of at most CHUNK_BYTES. No character is cut."""
    encoded, chunks, start = text.encode(), [], 0
    while start < len(encoded):
        end = min(start + CHUNK_BYTES, len(encoded))
        while end < len(encoded) and encoded[end] & 0xC0 == 0x80:
            end -= 1
        chunks.append(encoded[start:end].decode())
        start = end
    return chunks


def _cut(text: str, size_bytes: int) -> str:
    return text.encode()[:size_bytes].decode(errors="ignore")


def _within_key(within: str) -> str:
    return hashlib.sha256(within.encode()).hexdigest() if within else ""


def _targets(memory: Memory) -> list[str]:
    targets = dict.fromkeys(_target(link, memory.namespace) for link in memory.links)
    return list(targets)[:TARGETS_MAX]


def _target(link: Link, namespace: str) -> str:
    # JSON, so that no two lists of parts have the same encoding.
    parts = (link.kind.value, link.namespace or namespace, link.memory_id)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


# Filters


def key_filter(keys: Iterable[str]) -> str:
    """The rows with these keys. What is no key has no row."""
    digests = [key for key in keys if is_digest(key)]
    return f"pk in {json.dumps(digests)}" if digests else _NOTHING


def scope_filter(scope: Scope) -> str:
    """Raises ValueError for a name that was not checked."""
    if not is_digest(scope.tenant_key):
        raise ValueError("a tenant's key is 64 hex digits")
    if not scope.namespaces or not all(map(is_name, scope.namespaces)):
        raise ValueError("the namespaces were not checked")
    if not scope.states or scope.kinds == frozenset():
        return _NOTHING
    clauses = [f'tenant_key == "{scope.tenant_key}"', f"namespace in {_texts(scope.namespaces)}"]
    clauses.append(f"state in {_texts(state.value for state in scope.states)}")
    if scope.kinds is not None:
        clauses.append(f"kind in {_texts(kind.value for kind in scope.kinds)}")
    if scope.created_from_s is not None:
        clauses.append(f"created_s >= {_number(scope.created_from_s)}")
    if scope.created_until_s is not None:
        clauses.append(f"created_s < {_number(scope.created_until_s)}")
    return " and ".join(clauses)


def place_filter(scope: Scope, within: str, first: int, last: int) -> str:
    """The memories of a document from one position to another."""
    clause = f'within_key == "{_within_key(within)}" and position >= {int(first)} and position <= {int(last)}'
    return f"{scope_filter(scope)} and {clause}" if within else _NOTHING


def link_filter(scope: Scope, namespace: str, memory_id: str, kinds: frozenset[LinkKind]) -> str:
    """The memories with a link of one of these kinds to this one."""
    targets = [_target(Link(kind, memory_id, namespace), namespace) for kind in kinds]
    clause = f"array_contains_any(targets, {_texts(targets)})"
    return f"{scope_filter(scope)} and {clause}" if targets else _NOTHING


def word_filter(scope: Scope, word: str) -> str:
    """The memories with a word, as `words_of` spells it. Raises ValueError for another text."""
    if not word.isalnum():
        raise ValueError("a word is made of letters and digits")
    return f"{scope_filter(scope)} and text_match(words, '{word}')"


def _texts(texts: Iterable[str]) -> str:
    return json.dumps(sorted(texts))


def _number(number: float) -> str:
    """In digits: not every version of Milvus reads an exponent."""
    if not math.isfinite(number):
        raise ValueError("a time is a finite number")
    text = repr(float(number))
    return text if "e" not in text else f"{number:.9f}"


# Schema


def memories_schema(dim: int) -> Any:
    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("pk", DataType.VARCHAR, is_primary=True, max_length=64)
    schema.add_field("tenant_key", DataType.VARCHAR, is_partition_key=True, max_length=64)
    schema.add_field("memory_id", DataType.VARCHAR, max_length=128)
    schema.add_field("namespace", DataType.VARCHAR, max_length=64)
    schema.add_field("state", DataType.VARCHAR, max_length=32)
    schema.add_field("kind", DataType.VARCHAR, max_length=32)
    schema.add_field("created_s", DataType.DOUBLE)
    schema.add_field("updated_s", DataType.DOUBLE)
    schema.add_field("within", DataType.VARCHAR, max_length=WITHIN_MAX_BYTES)
    schema.add_field("within_key", DataType.VARCHAR, max_length=64)
    schema.add_field("position", DataType.INT64)
    _add_array(schema, "targets", TARGETS_MAX, 64)
    schema.add_field("digest", DataType.VARCHAR, max_length=64)
    _add_array(schema, "current", CHUNKS_MAX, CHUNK_BYTES)
    _add_array(schema, "older", CHUNKS_MAX, CHUNK_BYTES)
    # `words_of` has cut the text into words of letters and digits already, so that each is one token here.
    schema.add_field(
        "words",
        DataType.VARCHAR,
        max_length=VARCHAR_MAX_BYTES,
        enable_analyzer=True,
        enable_match=True,
        analyzer_params={"tokenizer": "standard"},
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


def schema_difference(dim: int, description: dict[str, Any]) -> str:
    """What a collection has otherwise than `memories_schema` says, in a few words. "": nothing.

    description: as Milvus gives it.
    """
    expected = {field.name: field for field in memories_schema(dim).fields}
    held = {field["name"]: field for field in description.get("fields", ())}
    if wrong := sorted(expected.keys() ^ held.keys()):
        return f"column {wrong[0]} is {'missing' if wrong[0] in expected else 'unknown'}"
    for name, column in expected.items():
        if int(held[name]["type"]) != int(column.dtype):
            return f"column {name} has another type"
    held_dim = int(held["dense"].get("params", {}).get("dim", dim))
    return "" if held_dim == dim else f"its vectors have {held_dim} numbers and not {dim}"


def _add_array(schema: Any, name: str, capacity: int, length: int) -> None:
    schema.add_field(
        name, DataType.ARRAY, element_type=DataType.VARCHAR, max_capacity=capacity, max_length=length
    )


def pages(
    records: Sequence[Record], rows_max: int, bytes_max: int, *, with_words: bool
) -> Iterable[list[Row]]:
    """The records' rows, in pages of bounded rows and bytes. with_words: as `row_of` takes it."""
    page: list[Row] = []
    size = 0
    for record in records:
        row = row_of(record, with_words=with_words)
        row_bytes = len(row["words"].encode()) + 8 * len(row["dense"]) + 1024
        row_bytes += sum(len(chunk.encode()) for chunk in (*row["current"], *row["older"]))
        if page and (len(page) == rows_max or size + row_bytes > bytes_max):
            yield page
            page, size = [], 0
        page.append(row)
        size += row_bytes
    if page:
        yield page
