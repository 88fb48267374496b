"""The text memory: a tenant's texts in namespaces, found again by meaning and by word."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
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
from memserve.memory.texts.applied import FlushNotVerified
from memserve.memory.texts.embedding import BUNDLED
from memserve.memory.texts.encoders.cached import CachedEmbedding
from memserve.memory.texts.encoders.embedder import Embedder
from memserve.memory.texts.encoders.reranking import Reranking
from memserve.memory.texts.index import MILVUS_ERRORS, VectorIndex, one_line
from memserve.memory.texts.journal import Journal, Look, Quotas, Write, delete, put
from memserve.memory.texts.milvus import MilvusAccess, is_local_uri, memory_key, tenant_key
from memserve.memory.texts.rules import (
    check_memory_id,
    check_namespace,
    checked_memory,
    checked_query,
    have_same_content,
)
from memserve.memory.texts.search import Halves, Search, search_index
from memserve.memory.texts.settling import Settling
from memserve.memory.texts.writing import NOT_COUNTED, JournalWriter, KnownNamespaces
from memserve.policy.recall.ranking import fuse

CLOSE_TIMEOUT_S = 60.0

log = logging.getLogger(__name__)

T = TypeVar("T")


class VectorMemory:
    """Memories of all tenants: a journal in the registry, and Milvus as the index.

    Create it with `open`, end it with `close`. It belongs to one event loop.

    1. A write is acknowledged when it is in the journal.
    2. `settling.py` brings the write into Milvus, and drops it from the journal when it is durable there.
    3. The registry has the namespaces and the number of their memories. Reads go on without the registry.
    4. Milvus Lite's new rows are flushed in the background: every `flush_rows` rows, after `flush_quiet_s`
       without a call, or when searches have spent as much time on the rows as a flush takes.

    Every method raises InvalidField for a name or value that breaks a rule, and VectorStoreUnavailable when
    Milvus fails or is late. Writes, `counts` and `count` raise RegistryUnavailable. A remember or forget that
    raises one of the two may still have happened. Repeating it is safe.
    """

    def __init__(
        self, index: VectorIndex, journal: Journal, settling: Settling, embedding: CachedEmbedding
    ) -> None:
        """For `open`."""
        self.settling = settling
        self._index = index
        self.reconnect = index.reconnect
        self._journal = journal
        self.embedding = embedding
        self._call_timeout_s = index.call_timeout_s
        self._closed = False
        self._namespaces = KnownNamespaces(journal, settling)
        self._writer = JournalWriter(
            journal, settling, self._namespaces, apply_timeout_s=index.call_timeout_s / 2
        )
        self._settles: asyncio.Task[None] | None = None
        self.reranking: Reranking | None = None  # set by the owner, before the first search

    @classmethod
    async def open(
        cls,
        uri: str,
        embedder: Embedder | CachedEmbedding,
        registry_url: str,
        *,
        access: MilvusAccess | None = None,
        call_timeout_s: float = 10.0,
        flush_rows: int = 256,
        flush_quiet_s: float = 5.0,
        may_flush: Callable[[], bool] = lambda: True,
        quotas: Quotas | None = None,
    ) -> Self:
        """Open a local store, or get ready to use a remote one.

        A remote Milvus or a registry that is down does not stop this. Calls fail until it is up.

        uri: a path that ends in `.db` (Milvus Lite, for one process at a time), or `http(s)://host:port`.
        registry_url: the Redis that has the journal.
        call_timeout_s: bound on any call except a search.
        may_flush: returns False while the disk is too full for a flush.
        quotas: of each tenant; None for the defaults.
        Raises InvalidField for a path with another ending, EmbedderChanged when another model has embedded
        the memories (no search would find them), and VectorStoreHeld, VectorStoreDamaged or
        VectorStoreUnavailable when a local store cannot be opened.
        """
        if is_local_uri(uri) and not uri.endswith(".db"):
            raise InvalidField(
                "milvus uri", "must be a path that ends in .db (Milvus Lite) or http(s)://host:port"
            )
        embedding = embedder if isinstance(embedder, CachedEmbedding) else CachedEmbedding(embedder)
        index = VectorIndex(uri, embedding.embedder.vectors, access, call_timeout_s=call_timeout_s)
        journal = Journal(registry_url, quotas or Quotas())
        settling = Settling(
            journal, index, flush_rows=flush_rows, flush_quiet_s=flush_quiet_s, may_flush=may_flush
        )
        memory = cls(index, journal, settling, embedding)
        try:
            await memory._begin()
        except BaseException:
            await memory.close()
            raise
        memory._settles = asyncio.create_task(settling.run(), name="memserve-settling")
        return memory

    async def close(self) -> None:
        """Finish the calls under way, flush, and release the store.

        Safe to call twice. Every later call of another method raises VectorStoreUnavailable.
        """
        if self._closed:
            return
        self._closed = True
        await self._writer.finish()
        if self._settles is not None:
            self._settles.cancel()
            await asyncio.gather(self._settles, return_exceptions=True)
            try:
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self.settling.settle_now()
            except (*MILVUS_ERRORS, MemserveError, FlushNotVerified) as error:
                log.warning(
                    "what Milvus has not durably written stays in the journal for the next start: %s",
                    one_line(error),
                )
        self.embedding.close()
        if self.reranking:
            self.reranking.close()
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
        """Store a memory. The first memory of a namespace creates the namespace.

        On return the memory is durable: it is in the journal, on disk.

        `get` finds it at once. Searches find it when Milvus has taken it, which is at once too unless Milvus
        fails. Repeating a memory returns the memory that was stored first.

        text, source, keywords: as `rules.checked_memory` takes them. BM25 finds keywords like words of the
        text.
        memory_id: the idempotency key. None takes the content's id, so that the same content remembered twice
        is one memory.
        now_s: seconds since the epoch, kept as `created_s`.
        Raises JournalFull, and MemoryConflict when the id has another text, source or keywords.
        """
        memory = checked_memory(
            namespace, text, source=source, keywords=keywords, memory_id=memory_id, now_s=now_s
        )

        async def store() -> Memory:
            write = put(tenant, memory, await self.embed(tenant, memory.text, query=False))
            while True:
                look = await self._journal.look(write.key, tenant, namespace)
                known = await self._known(tenant, write.key, look)
                if known is not None:
                    if not have_same_content(known, memory):
                        raise MemoryConflict(memory.memory_id)
                    return known
                if await self._writer.write(tenant, write, look, 1):
                    return memory

        return await self._within(self._call_timeout_s, store)

    async def get(self, tenant: str, namespace: str, memory_id: str) -> Memory:
        """Raises NamespaceNotFound or MemoryNotFound."""
        check_namespace("namespace", namespace)
        check_memory_id(memory_id)
        key = memory_key(tenant, namespace, memory_id)

        async def read() -> Memory:
            await self._namespaces.require(tenant, [namespace])
            # The journal first: a write that has left the journal is in Milvus.
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
        """Take a memory out of every kind of search and out of `get`, durably.

        Returns False when there is no such memory or namespace. The memory's bytes leave the disk when Milvus
        next compacts the segment that holds them. Raises JournalFull.
        """
        check_namespace("namespace", namespace)
        check_memory_id(memory_id)

        async def forget_once() -> bool:
            write = delete(tenant, namespace, memory_id)
            while True:
                look = await self._journal.look(write.key, tenant, namespace)
                if look.pending is not None and look.pending.author == write.author:
                    return True  # this write was sent twice, because the answer to the first was lost
                if not look.has_namespace or await self._known(tenant, write.key, look) is None:
                    return False
                if await self._writer.write(tenant, write, look, -1):
                    return True

        return await self._within(self._call_timeout_s, forget_once)

    async def search(
        self, tenant: str, namespaces: Sequence[str], query: str, limit: int, *, timeout_s: float
    ) -> list[ScoredMemory]:
        """Hybrid search: the nearest by meaning and the best by word, fused by rank.

        There is no threshold: the nearest memories come back even when none is near.

        namespaces: 1 to 16.
        query: at most 4 KiB of UTF-8. Its first 256 tokens count for the meaning. Its 8 longest words,
        function words excepted, count for the match by word.
        limit: 1 to 64.
        timeout_s: bound on the whole, waiting included.
        Returns at most `limit`, best first, as `fuse` or the reranker says. Raises NamespaceNotFound.
        """
        scope, query = checked_query(namespaces, query, limit)
        candidates = max(limit, self.reranking.candidates) if self.reranking else limit
        search = Search(tenant, scope, query, candidates)
        deadline_s = time.monotonic() + timeout_s

        async def both_halves() -> Halves:
            vector = await self.embed(tenant, query, query=True)
            await self._namespaces.require(tenant, scope)
            # Copied before the search: a write may reach Milvus, and leave `unapplied`, while the search
            # runs.
            before = dict(self.settling.unapplied)
            halves = await search_index(self._index, search, vector, deadline_s)
            self.settling.note_search(tenant_key(tenant), halves.calls)
            pending = before | await self._pending_of(halves.keys(tenant))
            return halves.without_outdated(tenant, pending)

        halves = await self._within(timeout_s, both_halves)
        hits = fuse(halves.dense, halves.bm25, candidates)
        if self.reranking:
            hits = list((await self.reranking(tenant, query, hits, deadline_s)).hits)
        return hits[:limit]

    @property
    def embedder(self) -> Embedder:
        return self.embedding.embedder

    async def counts(self, tenant: str) -> dict[str, int]:
        """The number of memories by namespace, in the order of names.

        Namespaces whose memories are all forgotten are part of it.
        """
        self._require_open()
        counts = await self._journal.counts(tenant)
        if not self.settling.is_counted:
            raise VectorStoreUnavailable(NOT_COUNTED)
        return dict(sorted(counts.items()))

    async def count(self, tenant: str, namespace: str) -> int:
        """The number of memories in the namespace. Raises NamespaceNotFound."""
        check_namespace("namespace", namespace)
        counts = await self.counts(tenant)
        if namespace not in counts:
            raise NamespaceNotFound(namespace)
        return counts[namespace]

    async def list_namespaces(self, tenant: str) -> list[str]:
        """The tenant's namespaces, by name. Namespaces whose memories are all forgotten are part of it."""
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
        """How many writes of all tenants are in the journal."""
        self._require_open()
        return (await self._journal.totals()).pending

    def lost(self, tenant: str, namespaces: Sequence[str] | None = None) -> int:
        """How many of the tenant's memories are counted and missing in Milvus, whose files are then damaged.

        namespaces: None for all of the tenant's.
        """
        lost = {
            name: memories
            for (owner, name), memories in self.settling.figures.lost.items()
            if owner == tenant_key(tenant)
        }
        return sum(lost.get(name, 0) for name in (lost if namespaces is None else set(namespaces)))

    async def _begin(self) -> None:
        """Open the index and replay the journal.

        A local store has to come up. Anything else that fails is tried again in the background.
        """
        with contextlib.suppress(RegistryUnavailable):  # logged below
            if before := await self._journal.embedded_before(
                self.embedder.vectors.embedder, self.embedder.name, BUNDLED
            ):
                raise EmbedderChanged(before, self.embedder.name)
        try:
            # Not bounded in time: recovery reads all that a killed process left.
            await self._index.reopen(lambda: None)
            await self.settling.open()
        except (*MILVUS_ERRORS, FlushNotVerified, RegistryUnavailable, VectorStoreUnavailable) as error:
            if self._index.is_local and not self._index.is_open:
                raise VectorStoreUnavailable(f"it cannot be opened: {one_line(error)}") from error
            log.warning("the vector memory starts all the same, and goes on with this: %s", one_line(error))
        try:
            await self._namespaces.learn()
            if await self._journal.syncs_every_write() is False:
                log.warning(
                    "the registry Redis does not sync every write (appendonly yes, appendfsync always): what "
                    "is acknowledged may be lost when it is killed or the power fails"
                )
        except RegistryUnavailable as error:
            log.warning("the vector memory starts without the registry: %s", error)

    async def _known(self, tenant: str, key: str, look: Look) -> Memory | None:
        """The memory as the journal has it, or else as Milvus has it."""
        if look.pending is not None:
            await self.settling.be_sure()
            return look.pending.memory
        return await self._index.read(tenant, lambda store: store.get(key, timeout_s=self._call_timeout_s))

    async def _pending_of(self, keys: Sequence[str]) -> dict[str, Write]:
        """The writes that Milvus may not have yet, by key.

        Milvus Lite has one gateway, which knows all of them. A Milvus server has several gateways, and only
        the journal knows the writes of all.
        """
        own = {key: self.settling.unapplied[key] for key in keys if key in self.settling.unapplied}
        if not self._index.is_local:
            with contextlib.suppress(RegistryUnavailable):
                return own | await self._journal.pending_of(keys)
        return own

    async def _within(self, timeout_s: float, work: Callable[[], Awaitable[T]]) -> T:
        self._require_open()
        try:
            async with asyncio.timeout(timeout_s):
                return await work()
        except TimeoutError as error:
            raise VectorStoreUnavailable(f"no answer within {timeout_s:g} s") from error
        except MILVUS_ERRORS as error:
            self._index.prepare_again()
            raise VectorStoreUnavailable(one_line(error)) from error

    def _require_open(self) -> None:
        if self._closed:
            raise VectorStoreUnavailable("it is closed")

    async def embed(self, tenant: str, text: str, *, query: bool) -> npt.NDArray[np.float32]:
        """[dim] of unit length. Off the event loop, where tenants take turns."""
        self._require_open()
        return np.asarray((await self.embedding.embed(tenant, [text], query=query))[0])
