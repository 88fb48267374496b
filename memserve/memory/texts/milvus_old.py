"""The collection of memserve 0.1.0, for as long as its rows are not all moved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pymilvus import MilvusClient

from memserve.memory.texts.milvus_rows import is_digest, key_filter
from memserve.memory.texts.records import Record, first_history, memory_from

OLD_MEMORIES = "memserve_memories_v1"
# memserve 0.1.0 kept the names of namespaces in Milvus, in this collection.
OLD_NAMESPACES = "memserve_namespaces_v1"

_FIELDS = ["memory_id", "namespace", "text", "source", "keywords", "created_s"]
_PAGE_ROWS = 512


class OldMemories:
    """Rows of the first schema. They are read and deleted, and never written.

    Another gateway may have dropped the collection. It then has no rows.
    """

    def __init__(self, client: MilvusClient, name: str) -> None:
        self._client = client
        self.name = name

    @staticmethod
    def name_for(embedder: str) -> str:
        """embedder: the name of the model that embeds; "" for the bundled one."""
        return OLD_MEMORIES + (f"_{embedder}" if embedder else "")

    def exists(self, *, timeout_s: float) -> bool:
        return bool(self._client.has_collection(self.name, timeout=timeout_s))

    def load(self, *, timeout_s: float) -> None:
        self._client.load_collection(self.name, timeout=timeout_s)

    def get_many(
        self, keys: Sequence[str], *, with_vectors: bool = False, timeout_s: float
    ) -> dict[str, Record]:
        """The rows that exist, by key, as records of one version."""
        columns = ["pk", "tenant_key", *_FIELDS, *(["dense"] if with_vectors else [])]
        records: dict[str, Record] = {}
        for start in range(0, len(keys), _PAGE_ROWS):
            page = key_filter(keys[start : start + _PAGE_ROWS])
            for row in self._rows(page, columns, timeout_s):
                records[row["pk"]] = _record(row)
        return records

    def keys_after(self, after: str, limit: int, *, timeout_s: float) -> list[str]:
        """The next keys in their order. after: the last key of the page before, or ""."""
        if after and not is_digest(after):
            raise ValueError("a key is 64 hex digits")
        if not self.exists(timeout_s=timeout_s):
            return []
        pages = self._client.query_iterator(
            self.name, batch_size=limit, filter=f'pk > "{after}"', output_fields=["pk"], timeout=timeout_s
        )
        try:
            return [row["pk"] for row in pages.next()]
        finally:
            pages.close()

    def delete(self, keys: Sequence[str], *, timeout_s: float) -> None:
        """Keys that do not exist are passed over."""
        try:
            self._client.delete(self.name, ids=list(keys), timeout=timeout_s)
        except Exception:
            if self.exists(timeout_s=timeout_s):
                raise

    def row_count(self, *, timeout_s: float) -> int:
        rows = self._rows("", ["count(*)"], timeout_s)
        return int(rows[0]["count(*)"]) if rows else 0

    def _rows(self, asked: str, columns: list[str], timeout_s: float) -> list[dict[str, Any]]:
        try:
            rows: list[dict[str, Any]] = self._client.query(
                self.name, filter=asked, output_fields=columns, timeout=timeout_s
            )
        except Exception:
            if self.exists(timeout_s=timeout_s):
                raise
            return []
        return rows


def _record(row: dict[str, Any]) -> Record:
    vector = row.get("dense")
    return Record(
        row["pk"],
        row["tenant_key"],
        first_history(memory_from({name: row[name] for name in _FIELDS})),
        None if vector is None else np.asarray(vector, np.float32),
    )
