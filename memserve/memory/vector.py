"""The vector memory: a tenant's texts in namespaces, found again by meaning and by word."""

import asyncio
import contextlib
import hashlib
import json
import logging
import re
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Self, TypeVar

import grpc
import numpy as np
import numpy.typing as npt
from pymilvus.exceptions import MilvusException

from memserve.domain import Memory, ScoredMemory
from memserve.errors import InvalidField, MemoryConflict, MemoryNotFound, NamespaceNotFound, VectorStoreUnavailable
from memserve.memory.embedding import EMBEDDING_DIM, MiniLmEmbedder
from memserve.memory.vector_milvus import MilvusMemories, is_local_uri
from memserve.policy.ranking import ScoredRow, fuse, query_words, rank_by_words
from memserve.turns import FairThreads, leave_one, on_own_thread

TEXT_MAX_BYTES = 8192
SOURCE_MAX_BYTES = 512
KEYWORDS_MAX = 16
KEYWORD_MAX_BYTES = 64
QUERY_MAX_BYTES = 4096
LIMIT_MAX = 64
NAMESPACES_MAX = 16
FLUSH_WITHIN_S = 60.0
# Whose turn it is when the work is memserve's own. No tenant is called so.
OWN_WORK = ""

_NAMESPACE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_NAMESPACE_RULE = "must be 1 to 64 of a-z, 0-9, '.', '_' and '-', and begin with a letter or a digit"
_MEMORY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_MEMORY_ID_RULE = "must be 1 to 128 of A-Z, a-z, 0-9, '.', '_', ':' and '-', and begin with a letter or a digit"

_MIN_CANDIDATES = 32
_KNOWN_NAMESPACES_MAX = 65_536

logger = logging.getLogger(__name__)

T = TypeVar("T")


class VectorMemory:
    """Memories of all tenants in one Milvus. Create it with `open`, end it with `close`; one event loop only.

    The blocking client runs on threads of its own: a single one for Milvus Lite, which is not safe under concurrency, else one for writes
    and several for reads. Milvus Lite's new rows are flushed in the background: `flush_rows` at a time, or when nothing was asked for
    `flush_quiet_s`, since every call waits for a flush and a slow disk may take seconds; after `FLUSH_WITHIN_S` in any case.

    Every method raises InvalidField for a name or value that breaks a rule, and VectorStoreUnavailable when Milvus fails or is late. A
    remember or forget that was late may still have happened: repeating it is safe.
    """

    def __init__(
        self, uri: str, embedder: MiniLmEmbedder, *, token: str, call_timeout_s: float, flush_rows: int, flush_quiet_s: float
    ) -> None:
        """For `open`."""
        self._uri = uri
        self._embedder = embedder
        self._token = token
        self._call_timeout_s = call_timeout_s
        self._flush_rows = flush_rows
        self._flush_quiet_s = flush_quiet_s
        self._is_local = is_local_uri(uri)
        self._embedding_thread = FairThreads("embedding", 1)
        self._write_thread = FairThreads("vector-store", 1)
        self._read_threads = self._write_thread if self._is_local else FairThreads("vector-store-read", 4, share=leave_one)
        self._connect_lock = threading.Lock()
        self._store: MilvusMemories | None = None
        self._must_prepare = False
        self._closed = False
        self._known_namespaces: set[tuple[str, str]] = set()  # a namespace is never removed, so a known one stays known
        self._unflushed_rows = 0
        self._has_unflushed = asyncio.Event()
        self._flush_due = asyncio.Event()
        self._last_call_s = 0.0
        self._flushing: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls,
        uri: str,
        embedder: MiniLmEmbedder,
        *,
        token: str = "",
        call_timeout_s: float = 10.0,
        flush_rows: int = 256,
        flush_quiet_s: float = 5.0,
    ) -> Self:
        """Open a local store, or get ready to use a remote one.

        uri: a path that ends in `.db`: Milvus Lite, which keeps a folder there that one process at a time may hold; else `http://host:port`.
        call_timeout_s: bound on any call but a search.
        A remote Milvus that is down does not stop this: calls fail until it is up. A local store that cannot be opened (held by another
        process, no right to write) raises VectorStoreUnavailable. A path with another ending raises InvalidField.
        """
        if is_local_uri(uri) and not uri.endswith(".db"):
            raise InvalidField("milvus uri", "must be a path that ends in .db (Milvus Lite) or http(s)://host:port")
        memory = cls(uri, embedder, token=token, call_timeout_s=call_timeout_s, flush_rows=flush_rows, flush_quiet_s=flush_quiet_s)
        if memory._is_local:
            try:
                # Not bounded in time: recovery reads all that a killed process left.
                await memory._on(memory._write_thread, OWN_WORK, memory._connected)
            except (MilvusException, grpc.RpcError, OSError) as error:
                await memory.close()
                raise VectorStoreUnavailable(f"cannot open {uri}, another process may hold it: {_one_line(error)}") from error
            memory._flushing = asyncio.create_task(memory._flush_in_background(), name="memserve-milvus-flush")
        return memory

    async def close(self) -> None:
        """Finish the calls under way, flush, release the store. Safe to call twice; every later call raises VectorStoreUnavailable."""
        if self._closed:
            return
        self._closed = True
        if self._flushing is not None:
            self._flushing.cancel()
            await asyncio.gather(self._flushing, return_exceptions=True)
        await on_own_thread(self._close_blocking)

    async def remember(
        self,
        tenant: str,
        namespace: str,
        text: str,
        *,
        source: str,
        keywords: Sequence[str],
        memory_id: str | None,
        now_s: float,
    ) -> Memory:
        """Store a memory; its namespace comes into being with the first. On return it is durable: killing the process does not lose it.

        text: at most 8 KiB of UTF-8. source: at most 512 bytes. keywords: at most 16 of 64 bytes; BM25 finds them like words of the text.
        memory_id: the idempotency key. None takes `content_id`, so that the same content remembered twice is one memory.
        now_s: seconds since the epoch, kept as `created_s`.
        Repeating a memory returns the one stored first. Raises MemoryConflict when the id has other text, source or keywords.
        """
        check_namespace("namespace", namespace)
        _check_text("text", text, TEXT_MAX_BYTES)
        _check_bytes("source", source, SOURCE_MAX_BYTES)
        if len(keywords) > KEYWORDS_MAX:
            raise InvalidField("keywords", f"must be at most {KEYWORDS_MAX}")
        for keyword in keywords:
            _check_text("keywords", keyword, KEYWORD_MAX_BYTES)
        if memory_id is None:
            memory_id = content_id(text, source, keywords)
        _check_memory_id(memory_id)
        memory = Memory(memory_id, namespace, text, source, tuple(keywords), now_s)

        async def store() -> Memory:
            vector = await self._embed(tenant, text)
            return await self._on(self._write_thread, tenant, lambda: self._store_once(tenant, memory, vector))

        stored = await self._within(self._call_timeout_s, store())
        self._count_unflushed_row()
        return stored

    async def get(self, tenant: str, namespace: str, memory_id: str) -> Memory:
        """Raises NamespaceNotFound or MemoryNotFound."""
        check_namespace("namespace", namespace)
        _check_memory_id(memory_id)

        def read() -> Memory:
            self._require_namespace(tenant, namespace, self._call_timeout_s)
            memory = self._connected().get(tenant, namespace, memory_id, timeout_s=self._call_timeout_s)
            if memory is None:
                raise MemoryNotFound(memory_id)
            return memory

        return await self._within(self._call_timeout_s, self._on(self._read_threads, tenant, read))

    async def forget(self, tenant: str, namespace: str, memory_id: str) -> bool:
        """Take a memory out of every kind of search and out of `get`, durably. False when there is none, or no such namespace.

        Its bytes leave the disk when Milvus next compacts the segment that holds them.
        """
        check_namespace("namespace", namespace)
        _check_memory_id(memory_id)

        def delete() -> bool:
            store = self._connected()
            if store.get(tenant, namespace, memory_id, timeout_s=self._call_timeout_s) is None:
                return False
            store.delete(tenant, namespace, memory_id, timeout_s=self._call_timeout_s)
            return True

        forgotten = await self._within(self._call_timeout_s, self._on(self._write_thread, tenant, delete))
        if forgotten:
            self._count_unflushed_row()
        return forgotten

    async def search(self, tenant: str, namespaces: Sequence[str], query: str, limit: int, *, timeout_s: float) -> list[ScoredMemory]:
        """Hybrid search: the nearest by meaning and the best by word, fused by rank.

        namespaces: 1 to 16. limit: 1 to 64. query: at most 4 KiB of UTF-8; its first 256 tokens count for the meaning, its 8 longest words
        (function words excepted) for the match by word.
        timeout_s: bound on the whole, waiting included.
        Returns at most `limit` memories, best first, scored as `fuse` says. There is no threshold: the nearest memories come back even when
        none is near. Raises NamespaceNotFound.
        """
        scope = list(dict.fromkeys(namespaces))
        if not 1 <= len(scope) <= NAMESPACES_MAX:
            raise InvalidField("namespaces", f"must be 1 to {NAMESPACES_MAX}")
        for namespace in scope:
            check_namespace("namespaces", namespace)
        _check_text("query", query, QUERY_MAX_BYTES)
        if not 1 <= limit <= LIMIT_MAX:
            raise InvalidField("limit", f"must be 1 to {LIMIT_MAX}")
        candidates = max(_MIN_CANDIDATES, 2 * limit)
        words = query_words(query)
        deadline_s = time.monotonic() + timeout_s

        def left_s() -> float:
            return max(0.001, deadline_s - time.monotonic())

        async def both_halves() -> tuple[list[ScoredRow], list[ScoredRow]]:
            vector = await self._embed(tenant, query)

            def read() -> tuple[list[ScoredRow], list[ScoredRow]]:
                for namespace in scope:
                    self._require_namespace(tenant, namespace, left_s())
                store = self._connected()
                dense = store.search_dense(tenant, scope, vector, candidates, timeout_s=left_s())
                if not words:
                    return dense, []
                found = store.search_words(tenant, scope, [query, *words], candidates, timeout_s=left_s())
                return dense, rank_by_words(words, found[0], found[1:], candidates)

            return await self._on(self._read_threads, tenant, read)

        dense, bm25 = await self._within(timeout_s, both_halves())
        return fuse(dense, bm25, limit)

    async def list_namespaces(self, tenant: str) -> list[str]:
        """The tenant's namespaces by name, with those whose memories are all forgotten."""

        def read() -> list[str]:
            return self._connected().list_namespaces(tenant, timeout_s=self._call_timeout_s)

        return await self._within(self._call_timeout_s, self._on(self._read_threads, tenant, read))

    async def count(self, tenant: str, namespace: str) -> int:
        """Memories in the namespace. Milvus Lite reads them all to count them. Raises NamespaceNotFound."""
        check_namespace("namespace", namespace)

        def read() -> int:
            self._require_namespace(tenant, namespace, self._call_timeout_s)
            return self._connected().count(tenant, namespace, timeout_s=self._call_timeout_s)

        return await self._within(self._call_timeout_s, self._on(self._read_threads, tenant, read))

    async def _within(self, timeout_s: float, work: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(timeout_s):
                return await work
        except TimeoutError as error:
            raise VectorStoreUnavailable(f"no answer within {timeout_s:g} s") from error
        except (MilvusException, grpc.RpcError, OSError) as error:
            # A Milvus that was restarted may have lost more than the connection, which mends itself: its collections may not be loaded.
            self._must_prepare = True
            raise VectorStoreUnavailable(_one_line(error)) from error

    async def _on(self, threads: FairThreads, tenant: str, call: Callable[[], T]) -> T:
        """Run a blocking call in the tenant's turn.

        One that is given up before its turn never runs; one that has begun runs on to its own timeout.
        """
        if self._closed:
            raise VectorStoreUnavailable("it is closed")
        self._last_call_s = time.monotonic()
        try:
            return await threads.run(tenant, call)
        except RuntimeError:
            if self._closed:
                raise VectorStoreUnavailable("it is closed") from None
            raise

    async def _embed(self, tenant: str, text: str) -> npt.NDArray[np.float32]:
        return await self._on(self._embedding_thread, tenant, lambda: self._embedder.embed([text])[0])

    def _connected(self) -> MilvusMemories:
        with self._connect_lock:
            if self._store is None:
                self._store = MilvusMemories(self._uri, self._token, dim=EMBEDDING_DIM, timeout_s=self._call_timeout_s)
            elif self._must_prepare:
                self._store.prepare(timeout_s=self._call_timeout_s)
            self._must_prepare = False
            return self._store

    def _store_once(self, tenant: str, memory: Memory, vector: npt.NDArray[np.float32]) -> Memory:
        """Runs on the write thread only, so that nothing comes between the look and the write."""
        store = self._connected()
        known = store.get(tenant, memory.namespace, memory.memory_id, timeout_s=self._call_timeout_s)
        if known is not None:
            if (known.text, known.source, known.keywords) != (memory.text, memory.source, memory.keywords):
                raise MemoryConflict(memory.memory_id)
            return known
        # The namespace first: a crash in between leaves an empty namespace, never a memory that cannot be found.
        if not self._has_namespace(tenant, memory.namespace, self._call_timeout_s):
            store.add_namespace(tenant, memory.namespace, memory.created_s, timeout_s=self._call_timeout_s)
        store.put(tenant, memory, vector, timeout_s=self._call_timeout_s)
        return memory

    def _has_namespace(self, tenant: str, namespace: str, timeout_s: float) -> bool:
        if (tenant, namespace) in self._known_namespaces:
            return True
        if not self._connected().has_namespace(tenant, namespace, timeout_s=timeout_s):
            return False
        if len(self._known_namespaces) >= _KNOWN_NAMESPACES_MAX:
            self._known_namespaces.clear()
        self._known_namespaces.add((tenant, namespace))
        return True

    def _require_namespace(self, tenant: str, namespace: str, timeout_s: float) -> None:
        if not self._has_namespace(tenant, namespace, timeout_s):
            raise NamespaceNotFound(namespace)

    def _count_unflushed_row(self) -> None:
        self._unflushed_rows += 1
        self._has_unflushed.set()
        if self._unflushed_rows >= self._flush_rows:
            self._flush_due.set()

    async def _flush_in_background(self) -> None:
        while True:
            await self._has_unflushed.wait()
            at_latest_s = time.monotonic() + FLUSH_WITHIN_S
            while (due_s := min(self._last_call_s + self._flush_quiet_s, at_latest_s)) > time.monotonic() and not self._flush_due.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(due_s - time.monotonic()):
                        await self._flush_due.wait()
            self._unflushed_rows = 0
            self._has_unflushed.clear()
            self._flush_due.clear()
            try:
                await self._on(self._write_thread, OWN_WORK, lambda: self._connected().flush(timeout_s=self._call_timeout_s))
            except (MilvusException, grpc.RpcError) as error:
                # Nothing is lost, the rows are in the write-ahead log; searches stay slower until a later flush succeeds.
                logger.warning("Milvus Lite could not flush, will try again: %s", _one_line(error))
                self._has_unflushed.set()

    def _close_blocking(self) -> None:
        for threads in (self._embedding_thread, self._read_threads, self._write_thread):
            threads.close(wait=True)
        if self._store is not None:
            self._store.close()
            self._store = None


def content_id(text: str, source: str, keywords: Sequence[str]) -> str:
    """The id of a memory that came without one: 32 hex digits of a sha256 over its content."""
    return hashlib.sha256(json.dumps([text, source, list(keywords)]).encode()).hexdigest()[:32]


def check_namespace(field: str, namespace: str) -> None:
    """Raises InvalidField."""
    if _NAMESPACE.fullmatch(namespace) is None:
        raise InvalidField(field, _NAMESPACE_RULE)


def _check_memory_id(memory_id: str) -> None:
    if _MEMORY_ID.fullmatch(memory_id) is None:
        raise InvalidField("memory_id", _MEMORY_ID_RULE)


def _check_text(field: str, value: str, max_bytes: int) -> None:
    if not value.strip():
        raise InvalidField(field, "must not be blank")
    _check_bytes(field, value, max_bytes)


def _check_bytes(field: str, value: str, max_bytes: int) -> None:
    try:
        size_bytes = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidField(field, "must be valid Unicode") from None
    if size_bytes > max_bytes:
        raise InvalidField(field, f"must be at most {max_bytes} bytes of UTF-8, is {size_bytes}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
