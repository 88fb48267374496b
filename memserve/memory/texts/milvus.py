"""The collection of memories: opened, written, kept in order. Blocking. `milvus_reads.py` reads it."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Self

from pymilvus import MilvusClient
from pymilvus.exceptions import MilvusException

from memserve.errors import StartupError
from memserve.memory.texts.milvus_client import MilvusAccess as MilvusAccess
from memserve.memory.texts.milvus_client import MilvusFailed as MilvusFailed
from memserve.memory.texts.milvus_client import Vectors as Vectors
from memserve.memory.texts.milvus_client import connect
from memserve.memory.texts.milvus_client import is_local_uri as is_local_uri
from memserve.memory.texts.milvus_client import milvus_failures as milvus_failures
from memserve.memory.texts.milvus_lite import MilvusLiteStore
from memserve.memory.texts.milvus_old import OLD_NAMESPACES, OldMemories
from memserve.memory.texts.milvus_reads import LIGHT_ROWS, MilvusReads
from memserve.memory.texts.milvus_rows import (
    MEMORIES as MEMORIES,
)
from memserve.memory.texts.milvus_rows import (
    PARTITIONS,
    collection_name,
    is_digest,
    memories_schema,
    pages,
    schema_difference,
)
from memserve.memory.texts.records import Record
from memserve.memory.texts.records import memory_key as memory_key
from memserve.memory.texts.records import tenant_key as tenant_key

# Of one call. A Milvus server refuses calls of more than 64 MiB.
PUT_ROWS = 256
PUT_BYTES = 16 << 20
_DELETE_ROWS = 1024

# FLAT is exact, and keeps its recall under a filter, however small the tenant's share is: a graph index loses
# hits under such a filter. A tenant's 100,000 vectors of 384 numbers are 150 MB, read once a search.
_INDEXES = (("dense", "FLAT", "COSINE"), ("sparse", "SPARSE_INVERTED_INDEX", "BM25"))


class MilvusMemories(MilvusReads):
    """Records in Milvus, one partition key for each tenant.

    A local store must be called from one thread at a time: Milvus Lite is not safe under concurrent writes,
    and a search during a flush misses the rows that are on their way to disk. A remote store may be called
    from several threads. Every method takes at most `timeout_s` seconds for each call that it makes on
    Milvus, and raises OSError or what `milvus_failures` catches.

    While a collection of memserve 0.1.0 is there, `put` and `delete` delete from it what they write,
    `get_many` finds what is left in it, and searches and lists are refused. `migration.py` moves its rows.
    """

    def __init__(
        self,
        uri: str,
        access: MilvusAccess,
        vectors: Vectors,
        *,
        is_searched: bool = True,
        timeout_s: float,
    ) -> None:
        """Connect and `prepare`.

        uri: a path that ends in `.db` (Milvus Lite, a folder), else `http(s)://host:port`.
        is_searched: False where another index finds the memories. The collection then has no search indexes.
        Raises VectorStoreHeld and VectorStoreDamaged of a local store, and StartupError when the collection
        has another schema.
        """
        self.is_local = is_local_uri(uri)
        lite: MilvusLiteStore | None = None
        if self.is_local:
            lite = MilvusLiteStore(uri)
            uri = lite.uri
        try:
            client = connect(uri, access, timeout_s=timeout_s)
        except BaseException:
            if lite is not None:
                lite.close(clean=False)
            raise
        if lite is not None:
            # pymilvus would try again what the process does not answer, until the call's time is up.
            lite.when_ended(client.close)
        self._owns_connection = True
        super().__init__(client, collection_name(vectors.embedder), lite, is_searched=is_searched)
        self._vectors = vectors
        try:
            old = OldMemories(client, OldMemories.name_for(vectors.embedder))
            if old.exists(timeout_s=timeout_s):
                self._old = old
            self.prepare(timeout_s=timeout_s)
        except BaseException:
            self.close(clean=False)
            raise

    def beside(self, vectors: Vectors, *, timeout_s: float) -> Self:
        """The collection of another embedding model in the same Milvus, over the same connection. It is
        created where it is missing. Closing it leaves the connection open.
        """
        other = object.__new__(type(self))
        MilvusReads.__init__(
            other, self._client, collection_name(vectors.embedder), self._lite, is_searched=self._is_searched
        )
        other.is_local, other._vectors, other._owns_connection = self.is_local, vectors, False
        other.prepare(timeout_s=timeout_s)
        return other

    def serve(self, vectors: Vectors) -> None:
        """Be the collection of another model, which is prepared. No other call may be under way."""
        self._name, self._vectors = collection_name(vectors.embedder), vectors

    def prepare(self, *, timeout_s: float) -> None:
        """Create the collection and its indexes where they are missing, and have Milvus load the collection.

        Repeating it is cheap. Raises StartupError when the collection has another schema.
        """
        self._make(
            # Strong: every gateway sees what another gateway has stored or forgotten.
            lambda: self._client.create_collection(
                self._name,
                schema=memories_schema(self._vectors.dim),
                consistency_level="Strong",
                num_partitions=PARTITIONS,
                timeout=timeout_s,
            ),
            partial(self._client.has_collection, self._name, timeout=timeout_s),
        )
        description = self._client.describe_collection(self._name, timeout=timeout_s)
        if difference := schema_difference(self._vectors.dim, description):
            raise StartupError(
                f"Milvus' collection {self._name} is not memserve's ({difference}): drop it, or use another "
                "database or data directory"
            )
        for column, index_type, metric in _INDEXES if self._is_searched else ():
            index = MilvusClient.prepare_index_params()
            index.add_index(column, index_type=index_type, metric_type=metric)
            self._make(
                # Loading waits for the index. The client's own wait sleeps half a second even when the index
                # is ready.
                partial(self._client.create_index, self._name, index, sync=False, timeout=timeout_s),
                partial(self._client.list_indexes, self._name, field_name=column),
            )
        self._client.load_collection(self._name, timeout=timeout_s)
        if self._old is not None and self._old.exists(timeout_s=timeout_s):
            self._old.load(timeout_s=timeout_s)

    @property
    def old(self) -> OldMemories | None:
        """The collection of memserve 0.1.0, until all its rows are moved."""
        return self._old

    def put(self, records: Sequence[Record], *, timeout_s: float) -> None:
        """Keep records, in place of those with the same keys. All of them have their vectors.

        When it raises, some of the records may be kept.
        """
        # Of two records with one key the later one counts.
        last = list({record.key: record for record in records}.values())
        self.put_new(last, timeout_s=timeout_s)
        if self._old is not None:
            self._old.delete([record.key for record in records], timeout_s=timeout_s)

    def delete(self, keys: Sequence[str], *, timeout_s: float) -> None:
        """Remove records with their histories. Keys that do not exist are passed over."""
        keys = [key for key in keys if is_digest(key)]
        for start in range(0, len(keys), _DELETE_ROWS):
            page = keys[start : start + _DELETE_ROWS]
            if self._old is not None:
                self._old.delete(page, timeout_s=timeout_s)
            self._client.delete(self._name, ids=page, timeout=timeout_s)

    def erase(self, keys: Sequence[str], *, timeout_s: float) -> None:
        """As `delete`, also from the collections of other embedding models, where a reindexing put them."""
        keys = [key for key in keys if is_digest(key)]
        for name in self._others(timeout_s):
            self._client.load_collection(name, timeout=timeout_s)
            for start in range(0, len(keys), _DELETE_ROWS):
                self._client.delete(name, ids=keys[start : start + _DELETE_ROWS], timeout=timeout_s)
        self.delete(keys, timeout_s=timeout_s)

    def put_new(self, records: Sequence[Record], *, timeout_s: float) -> None:
        """As `put`, of records that stay in the old collection too."""
        # Where another index finds the memories, their words would cost a fifth of a write and find nothing.
        for page in pages(records, PUT_ROWS, PUT_BYTES, with_words=self._is_searched):
            if self._lite is not None:
                self._lite.upsert(self._name, page, timeout_s=timeout_s)
            else:
                self._client.upsert(self._name, page, timeout=timeout_s)

    def drop_old(self, *, timeout_s: float) -> None:
        """Drop the collection of memserve 0.1.0."""
        if self._old is not None:
            try:
                self._drop(self._old.name, timeout_s)
            except MilvusException:
                # Another gateway may be dropping it too.
                if self._old.exists(timeout_s=timeout_s):
                    raise
        self._old = None

    def has_vectors_of(self, embedder: str, *, timeout_s: float) -> bool:
        """Whether there is a collection of this embedding model. "": the bundled one."""
        return bool(self._client.has_collection(collection_name(embedder), timeout=timeout_s))

    @property
    def vectors(self) -> Vectors:
        return self._vectors

    def drop_vectors_of(self, embedder: str, *, timeout_s: float) -> None:
        """Drop the collection of another embedding model, where there is one."""
        if embedder != self._vectors.embedder and self.has_vectors_of(embedder, timeout_s=timeout_s):
            self._drop(collection_name(embedder), timeout_s)

    def drop(self, *, timeout_s: float) -> None:
        """Drop this collection, after another one has taken its place."""
        self._drop(self._name, timeout_s)

    def counts(self, *, timeout_s: float) -> dict[tuple[str, str], int]:
        """The number of records by tenant key and namespace. Slow, because every row is read.

        Namespaces of an older layout are part of it, also the empty ones.
        """
        counts: Counter[tuple[str, str]] = Counter()
        if self._client.has_collection(OLD_NAMESPACES, timeout=timeout_s):
            self._client.load_collection(OLD_NAMESPACES, timeout=timeout_s)
            names = MilvusReads(self._client, OLD_NAMESPACES, self._lite, is_searched=False)
            for page in names._scan("", ["tenant_key", "namespace"], LIGHT_ROWS, timeout_s):
                counts.update(dict.fromkeys(((row["tenant_key"], row["namespace"]) for row in page), 0))
        for page in self._scan("", ["tenant_key", "namespace"], LIGHT_ROWS, timeout_s):
            counts.update((row["tenant_key"], row["namespace"]) for row in page)
        return dict(counts)

    def flush(self, *, timeout_s: float) -> None:
        """Turn the rows of the write-ahead log into indexed segments.

        Milvus Lite scans rows in Python until they are flushed. A flush that returns proves nothing: `sync`
        brings a local store's files to disk, and `digests` says whether the rows exist.
        """
        self._client.flush(self._name, timeout=timeout_s)

    def compact(self, tenant_keys: Sequence[str], *, timeout_s: float) -> None:
        """Have what was deleted leave the files, after an erase.

        On return nothing of it is in Milvus Lite's files. A Milvus server does it later, when it collects its
        garbage.
        """
        for name in (self._name, *self._others(timeout_s)):
            self._client.flush(name, timeout=timeout_s)
            if self._lite is not None:
                self._lite.compact(name, tenant_keys, timeout_s=timeout_s)
            else:
                self._client.compact(name, timeout=timeout_s)

    def sync(self) -> None:
        """Sync a local store's files. Other calls may go on meanwhile. Raises OSError."""
        if self._lite is not None:
            self._lite.sync()

    def copy_to(self, target: Path) -> None:
        """Copy a local store's files. Nothing may be written to the store meanwhile."""
        assert self._lite is not None
        self._lite.copy_to(target)

    @property
    def process_id(self) -> int | None:
        """Of Milvus Lite. None: a server has the store."""
        return None if self._lite is None else self._lite.process_id

    @property
    def has_ended(self) -> bool:
        """Whether the process of a local store has ended. Then every call fails."""
        return self._lite is not None and self._lite.has_ended

    def probe(self) -> None:
        """Raises OSError when a local store could not be opened again after it is closed."""
        if self._lite is not None:
            self._lite.probe()

    def close(self, *, clean: bool = False) -> None:
        """Disconnect, and release a local store's folder.

        clean: the last flush is verified.
        """
        if not self._owns_connection:
            return
        self._client.close()
        if self._lite is not None:
            self._lite.close(clean=clean)

    def _others(self, timeout_s: float) -> list[str]:
        """The collections of other embedding models."""
        names = self._client.list_collections(timeout=timeout_s)
        return sorted(name for name in names if name.startswith(MEMORIES) and name != self._name)

    def _drop(self, name: str, timeout_s: float) -> None:
        """Dropping what is not there does nothing."""
        marked = contextlib.nullcontext() if self._lite is None else self._lite.dropping(name)
        with marked:
            self._client.drop_collection(name, timeout=timeout_s)

    @staticmethod
    def _make(create: Callable[[], object], is_there: Callable[[], object]) -> None:
        """Create what is not there. Another gateway may create it at the same moment."""
        if is_there():
            return
        try:
            create()
        except MilvusException:
            if not is_there():
                raise
