"""The vector memory: a tenant's texts in namespaces, found again by meaning and by word."""

import asyncio
import contextlib
import hashlib
import json
import logging
import math
import re
import time
import unicodedata
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Self, TypeVar

import numpy as np
import numpy.typing as npt

from memserve.domain import Memory, ScoredMemory
from memserve.errors import (
    EmbedderChanged,
    InvalidField,
    MemoryConflict,
    MemoryNotFound,
    MemserveError,
    NamespaceNotFound,
    RegistryUnavailable,
    VectorStoreUnavailable,
)
from memserve.memory.texts.embedding import BUNDLED, BertEmbedder
from memserve.memory.texts.index import MILVUS_ERRORS, VectorIndex
from memserve.memory.texts.journal import Journal, Look, Quotas, Write, delete, put
from memserve.memory.texts.milvus import MilvusMemories, is_local_uri, memory_key, tenant_key
from memserve.memory.texts.settling import FlushNotVerified, Settling
from memserve.policy.recall.ranking import ScoredRow, fuse, query_words, rank_by_words
from memserve.policy.recall.words import words_of
from memserve.turns import FairThreads, leave_one

TEXT_MAX_BYTES = 8192
SOURCE_MAX_BYTES = 512
KEYWORDS_MAX = 16
KEYWORD_MAX_BYTES = 64
QUERY_MAX_BYTES = 4096
LIMIT_MAX = 64
NAMESPACES_MAX = 16
CLOSE_TIMEOUT_S = 60.0
EMBEDDING_THREADS = 2
NOT_COUNTED = "it has not been up since this registry is used, so its memories are not counted yet"

_NAMESPACE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_NAMESPACE_RULE = "must be 1 to 64 of a-z, 0-9, '.', '_' and '-', and begin with a letter or a digit"
_MEMORY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_MEMORY_ID_RULE = (
    "must be 1 to 128 of A-Z, a-z, 0-9, '.', '_', ':' and '-', and begin with a letter or a digit"
)

_MIN_CANDIDATES = 32
# What a search may ask of Milvus at once: Milvus Lite takes about 0.1 ms for each row that it finds. A dear
# search has several turns, so that another tenant's calls come between.
ROWS_IN_A_TURN = 9 * _MIN_CANDIDATES

logger = logging.getLogger(__name__)

T = TypeVar("T")


class VectorMemory:
    """Memories of all tenants: a journal in the registry, and Milvus as the index. Create it with `open`, end
    it with `close`; one event loop only.

    A write is acknowledged when it is in the journal; `settling.py` brings it into Milvus and drops it from
    the journal when it is durable there. Namespaces and how many memories they have are kept in the registry.
    Reads go on without the registry. Milvus Lite's new rows are flushed in the background: `flush_rows` at a
    time, when nothing was asked for `flush_quiet_s`, or when searches have spent as much on them as a flush
    takes.

    Every method raises InvalidField for a name or value that breaks a rule, and VectorStoreUnavailable when
    Milvus fails or is late; writes, `counts` and `count` raise RegistryUnavailable. A remember or forget that
    failed so may still have happened: repeating it is safe.
    """

    def __init__(
        self, index: VectorIndex, journal: Journal, settling: Settling, embedder: BertEmbedder
    ) -> None:
        """For `open`."""
        self.settling = settling
        self._index = index
        self._journal = journal
        self._embedder = embedder
        self._call_timeout_s = index.call_timeout_s
        # One more than a tenant may have: a long text of one tenant's does not hold up another's.
        self._embedding_threads = FairThreads("embedding", EMBEDDING_THREADS, share=leave_one)
        self._closed = False
        # By tenant key. A namespace is never removed, so a known one stays known.
        self._known_namespaces: dict[str, set[str]] = {}
        self._settles: asyncio.Task[None] | None = None
        self._journaling: set[asyncio.Task[asyncio.Task[None] | None]] = set()

    @classmethod
    async def open(
        cls,
        uri: str,
        embedder: BertEmbedder,
        registry_url: str,
        *,
        token: str = "",
        call_timeout_s: float = 10.0,
        flush_rows: int = 256,
        flush_quiet_s: float = 5.0,
        may_flush: Callable[[], bool] = lambda: True,
        quotas: Quotas | None = None,
    ) -> Self:
        """Open a local store, or get ready to use a remote one.

        uri: a path that ends in `.db`: Milvus Lite, which keeps a folder there that one process at a time may
        hold; else `http://host:port`. registry_url: the Redis that has the journal. call_timeout_s: bound on
        any call but a search. may_flush: False while the disk is too full for a flush. quotas: of each
        tenant; None for the defaults. A remote Milvus or a registry that is down does not stop this: calls
        fail until it is up. A local store raises VectorStoreHeld, VectorStoreDamaged or
        VectorStoreUnavailable when it cannot be opened. Raises EmbedderChanged when there are memories that
        another model has embedded: no search would find them. A path with another ending raises InvalidField.
        """
        if is_local_uri(uri) and not uri.endswith(".db"):
            raise InvalidField(
                "milvus uri", "must be a path that ends in .db (Milvus Lite) or http(s)://host:port"
            )
        index = VectorIndex(uri, embedder.vectors, token=token, call_timeout_s=call_timeout_s)
        journal = Journal(registry_url, quotas or Quotas())
        settling = Settling(
            journal, index, flush_rows=flush_rows, flush_quiet_s=flush_quiet_s, may_flush=may_flush
        )
        memory = cls(index, journal, settling, embedder)
        try:
            await memory._begin()
        except BaseException:
            await memory.close()
            raise
        memory._settles = asyncio.create_task(settling.run(), name="memserve-settling")
        return memory

    async def close(self) -> None:
        """Finish the calls under way, flush, release the store. Safe to call twice; every later call raises
        VectorStoreUnavailable.
        """
        if self._closed:
            return
        self._closed = True
        if self._journaling:
            await asyncio.wait(list(self._journaling))
        if self._settles is not None:
            self._settles.cancel()
            await asyncio.gather(self._settles, return_exceptions=True)
            try:
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self.settling.settle_now()
            except (*MILVUS_ERRORS, MemserveError, FlushNotVerified) as error:
                logger.warning(
                    "what Milvus has not durably written stays in the journal for the next start: %s",
                    _one_line(error),
                )
        self._embedding_threads.close()
        await self._index.close(clean=self.settling.is_settled)
        await self._journal.close()

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
        """Store a memory; its namespace comes into being with the first. On return it is durable: it is in
        the journal, on disk.

        Texts are kept in NFC, so that an accent typed in one piece or in two is the same memory.
        text: at most 8 KiB of UTF-8. source: at most 512 bytes. keywords: at most 16 of 64 bytes; BM25 finds
        them like words of the text. memory_id: the idempotency key. None takes `content_id`, so that the same
        content remembered twice is one memory. now_s: seconds since the epoch, kept as `created_s`. `get` has
        it at once; searches have it when Milvus has taken it, which is at once too unless Milvus fails.
        Repeating a memory returns the one stored first. Raises MemoryConflict when the id has other text,
        source or keywords, and JournalFull.
        """
        check_namespace("namespace", namespace)
        text, source, keywords = (
            _composed(text),
            _composed(source),
            [_composed(keyword) for keyword in keywords],
        )
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
            write = put(tenant, memory, await self._embed(tenant, text, query=False))
            while True:
                look = await self._journal.look(write.key, tenant, namespace)
                known = await self._known(tenant, write.key, look)
                if known is not None:
                    if content_of(known) != content_of(memory):
                        raise MemoryConflict(memory.memory_id)
                    return known
                if await self._journaled(tenant, write, look, 1):
                    return memory

        return await self._within(self._call_timeout_s, store)

    async def get(self, tenant: str, namespace: str, memory_id: str) -> Memory:
        """Raises NamespaceNotFound or MemoryNotFound."""
        check_namespace("namespace", namespace)
        _check_memory_id(memory_id)
        key = memory_key(tenant, namespace, memory_id)

        async def read() -> Memory:
            await self._require_namespaces(tenant, [namespace])
            # The journal first: what is no longer there is in Milvus.
            pending = await self._pending_of([key])
            if key in pending:
                memory = pending[key].memory
            else:
                memory = await self._index.read(
                    tenant, lambda store: store.get(key, timeout_s=self._call_timeout_s)
                )
            if memory is None:
                raise MemoryNotFound(memory_id)
            return memory

        return await self._within(self._call_timeout_s, read)

    async def forget(self, tenant: str, namespace: str, memory_id: str) -> bool:
        """Take a memory out of every kind of search and out of `get`, durably. False when there is none, or
        no such namespace.

        Its bytes leave the disk when Milvus next compacts the segment that holds them. Raises JournalFull.
        """
        check_namespace("namespace", namespace)
        _check_memory_id(memory_id)

        async def forget_once() -> bool:
            write = delete(tenant, namespace, memory_id)
            while True:
                look = await self._journal.look(write.key, tenant, namespace)
                if look.pending is not None and look.pending.author == write.author:
                    return True  # the answer to this very write was lost, and it was sent again
                if not look.has_namespace or await self._known(tenant, write.key, look) is None:
                    return False
                if await self._journaled(tenant, write, look, -1):
                    return True

        return await self._within(self._call_timeout_s, forget_once)

    async def search(
        self, tenant: str, namespaces: Sequence[str], query: str, limit: int, *, timeout_s: float
    ) -> list[ScoredMemory]:
        """Hybrid search: the nearest by meaning and the best by word, fused by rank.

        namespaces: 1 to 16. limit: 1 to 64. query: at most 4 KiB of UTF-8; its first 256 tokens count for the
        meaning, its 8 longest words (function words excepted) for the match by word. timeout_s: bound on the
        whole, waiting included. Returns at most `limit` memories, best first, scored as `fuse` says. There is
        no threshold: the nearest memories come back even when none is near. Raises NamespaceNotFound.
        """
        scope = list(dict.fromkeys(namespaces))
        if not 1 <= len(scope) <= NAMESPACES_MAX:
            raise InvalidField("namespaces", f"must be 1 to {NAMESPACES_MAX}")
        for namespace in scope:
            check_namespace("namespaces", namespace)
        query = _composed(query)
        _check_text("query", query, QUERY_MAX_BYTES)
        if not 1 <= limit <= LIMIT_MAX:
            raise InvalidField("limit", f"must be 1 to {LIMIT_MAX}")
        candidates = max(_MIN_CANDIDATES, 2 * limit)
        words = query_words(query)
        deadline_s = time.monotonic() + timeout_s

        def left_s() -> float:
            return max(0.001, deadline_s - time.monotonic())

        async def both_halves() -> tuple[list[ScoredRow], list[ScoredRow]]:
            vector = await self._embed(tenant, query, query=True)
            await self._require_namespaces(tenant, scope)

            def nearest(store: MilvusMemories) -> list[ScoredRow]:
                return store.search_dense(tenant, scope, vector, candidates, timeout_s=left_s())

            def by_words(store: MilvusMemories, first: int, end: int) -> list[ScoredRow]:
                found.extend(
                    store.search_words(tenant, scope, queries[first:end], candidates, timeout_s=left_s())
                )
                return rank_by_words(words, found[0], found[1:], candidates) if end >= len(queries) else []

            before = dict(self.settling.unapplied)
            dense = await self._index.read(tenant, nearest)
            queries = [" ".join(words_of(query)), *words] if words else []
            found: list[list[Memory]] = []
            bm25: list[ScoredRow] = []
            at_once = max(1, ROWS_IN_A_TURN // candidates)
            for first in range(0, len(queries), at_once):
                bm25 = await self._index.read(tenant, partial(by_words, first=first, end=first + at_once))
            self.settling.note_search(tenant_key(tenant), 1 + math.ceil(len(queries) / at_once))
            keys = {memory_key(tenant, row[0].namespace, row[0].memory_id) for row in (*dense, *bm25)}
            pending = before | await self._pending_of(sorted(keys))

            def holds(row: ScoredRow) -> bool:
                write = pending.get(memory_key(tenant, row[0].namespace, row[0].memory_id))
                return write is None or write.memory == row[0]

            return [row for row in dense if holds(row)], [row for row in bm25 if holds(row)]

        dense, bm25 = await self._within(timeout_s, both_halves)
        return fuse(dense, bm25, limit)

    @property
    def embedder(self) -> str:
        """The name of the model that embeds."""
        return self._embedder.name

    async def counts(self, tenant: str) -> dict[str, int]:
        """The tenant's namespaces by name, each with its memories; also those whose memories are all
        forgotten.
        """
        self._require_open()
        counts = await self._journal.counts(tenant)
        if not self.settling.is_counted:
            raise VectorStoreUnavailable(NOT_COUNTED)
        return dict(sorted(counts.items()))

    async def count(self, tenant: str, namespace: str) -> int:
        """Memories in the namespace. Raises NamespaceNotFound."""
        check_namespace("namespace", namespace)
        counts = await self.counts(tenant)
        if namespace not in counts:
            raise NamespaceNotFound(namespace)
        return counts[namespace]

    async def list_namespaces(self, tenant: str) -> list[str]:
        """The tenant's namespaces by name, with those whose memories are all forgotten."""
        return list(await self.counts(tenant))

    async def answers(self, tenant: str, timeout_s: float) -> bool:
        """Whether Milvus answers a look-up within this time, in the tenant's turn."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._index.read(tenant, lambda store: store.get("", timeout_s=timeout_s))
        except (*MILVUS_ERRORS, MemserveError):  # TimeoutError is an OSError
            return False
        return True

    async def waiting_writes(self) -> int:
        """Writes of all tenants that are in the journal."""
        self._require_open()
        return (await self._journal.totals()).pending

    def lost(self, tenant: str, namespaces: Sequence[str] | None = None) -> int:
        """Memories of the tenant, in these namespaces or all, that are counted and that Milvus has lost: its
        files are damaged.
        """
        key = tenant_key(tenant)
        lost = self.settling.figures.lost
        return sum(
            n
            for (owner, name), n in lost.items()
            if owner == key and (namespaces is None or name in namespaces)
        )

    async def _begin(self) -> None:
        """Open the index and replay the journal. A local store must come up; what else fails is tried again
        in the background.
        """
        with contextlib.suppress(RegistryUnavailable):  # which is said below
            if before := await self._journal.embedded_before(
                self._embedder.vectors.embedder, self._embedder.name, BUNDLED
            ):
                raise EmbedderChanged(before, self._embedder.name)
        try:
            # Not bounded in time: recovery reads all that a killed process left.
            await self._index.reopen(lambda: None)
            await self.settling.open()
        except (*MILVUS_ERRORS, FlushNotVerified, RegistryUnavailable, VectorStoreUnavailable) as error:
            if self._index.is_local and not self._index.is_open:
                raise VectorStoreUnavailable(f"it cannot be opened: {_one_line(error)}") from error
            logger.warning(
                "the vector memory starts all the same, and goes on with this: %s", _one_line(error)
            )
        try:
            async for key, names in self._journal.all_namespaces():
                self._known_namespaces[key] = set(names)
            if await self._journal.syncs_every_write() is False:
                logger.warning(
                    "the registry Redis does not sync every write (appendonly yes, appendfsync "
                    "always): what is acknowledged may be lost "
                    "when it is killed or the power fails"
                )
        except RegistryUnavailable as error:
            logger.warning("the vector memory starts without the registry: %s", error)

    async def _known(self, tenant: str, key: str, look: Look) -> Memory | None:
        """The memory as the journal or else Milvus has it."""
        if look.pending is not None:
            await self.settling.be_sure()
            return look.pending.memory
        return await self._index.read(tenant, lambda store: store.get(key, timeout_s=self._call_timeout_s))

    async def _journaled(self, tenant: str, write: Write, look: Look, change: int) -> bool:
        """Journal a write and bring it into Milvus. False: the memory was written since `look`. Goes on when
        the call is cancelled.
        """
        if not self.settling.is_counted:
            raise VectorStoreUnavailable(NOT_COUNTED)
        journaling = asyncio.create_task(self._journal_and_apply(tenant, write, look, change))
        self._journaling.add(journaling)
        journaling.add_done_callback(self._journaled_or_not)
        applying = await asyncio.shield(journaling)
        if applying is None:
            return False
        # It is durable. That Milvus is late changes nothing: the call then ends well, and the write goes on.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._call_timeout_s / 2):
                await asyncio.shield(applying)
        return True

    def _journaled_or_not(self, journaling: asyncio.Task[asyncio.Task[None] | None]) -> None:
        self._journaling.discard(journaling)
        journaling.exception()  # the call that asked for it may have been given up

    async def _journal_and_apply(
        self, tenant: str, write: Write, look: Look, change: int
    ) -> asyncio.Task[None] | None:
        try:
            sequence = await self._journal.append(write, look, change)
        except RegistryUnavailable:
            self.settling.be_unsure()
            raise
        if sequence is None:
            return None
        self._known_namespaces.setdefault(write.tenant_key, set()).add(write.namespace)
        return self.settling.apply(tenant, replace(write, sequence=sequence))

    async def _pending_of(self, keys: Sequence[str]) -> dict[str, Write]:
        """The writes that Milvus may not have yet. Milvus Lite has one gateway, which knows them all;
        otherwise the journal does.
        """
        own = {key: self.settling.unapplied[key] for key in keys if key in self.settling.unapplied}
        if not self._index.is_local:
            with contextlib.suppress(RegistryUnavailable):
                return own | await self._journal.pending_of(keys)
        return own

    async def _require_namespaces(self, tenant: str, namespaces: Sequence[str]) -> None:
        """Without the registry, an unknown namespace passes: it may exist."""
        known = self._known_namespaces.get(tenant_key(tenant), set())
        if all(namespace in known for namespace in namespaces):
            return
        try:
            known = self._known_namespaces[tenant_key(tenant)] = set(await self._journal.counts(tenant))
        except RegistryUnavailable:
            return
        if self.settling.is_counted is False:
            raise VectorStoreUnavailable(NOT_COUNTED)
        for namespace in namespaces:
            if namespace not in known:
                raise NamespaceNotFound(namespace)

    async def _within(self, timeout_s: float, work: Callable[[], Awaitable[T]]) -> T:
        self._require_open()
        try:
            async with asyncio.timeout(timeout_s):
                return await work()
        except TimeoutError as error:
            raise VectorStoreUnavailable(f"no answer within {timeout_s:g} s") from error
        except MILVUS_ERRORS as error:
            self._index.prepare_again()
            raise VectorStoreUnavailable(_one_line(error)) from error

    def _require_open(self) -> None:
        if self._closed:
            raise VectorStoreUnavailable("it is closed")

    async def _embed(self, tenant: str, text: str, *, query: bool) -> npt.NDArray[np.float32]:
        self._require_open()
        try:
            return await self._embedding_threads.run(
                tenant, lambda: self._embedder.embed([text], query=query)[0]
            )
        except RuntimeError:
            self._require_open()
            raise


def content_of(memory: Memory) -> tuple[str, ...]:
    """What is compared when a memory comes again. An older store has texts as they came."""
    return tuple(_composed(text) for text in (memory.text, memory.source, *memory.keywords))


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


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
