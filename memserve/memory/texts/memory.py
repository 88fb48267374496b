"""The text memory: a tenant's texts in namespaces, found again by meaning, by word, by place and by link."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from memserve.errors import (
    EmbedderChanged,
    InvalidField,
    MemserveError,
    RegistryUnavailable,
    VectorStoreUnavailable,
)
from memserve.memory.texts.applied import FlushNotVerified
from memserve.memory.texts.consolidating import Consolidating
from memserve.memory.texts.core import Parts
from memserve.memory.texts.due import FlushPolicy
from memserve.memory.texts.encoders.cached import CachedEmbedding
from memserve.memory.texts.encoders.embedder import Embedder
from memserve.memory.texts.erasing import DAY_S, Eraser, Erasing
from memserve.memory.texts.exchange import Exchange
from memserve.memory.texts.following import SearchParts
from memserve.memory.texts.index import MILVUS_ERRORS, VectorIndex, one_line
from memserve.memory.texts.journal import Journal
from memserve.memory.texts.journal_entries import Quotas
from memserve.memory.texts.milvus import MilvusAccess, is_local_uri
from memserve.memory.texts.pinning import Pinning
from memserve.memory.texts.reembedding import Reembedding, model_of
from memserve.memory.texts.relating import Relate, relate_by_rules
from memserve.memory.texts.searched import LocalStore, RebuildFigures
from memserve.memory.texts.searching import Searching
from memserve.memory.texts.settling import Settling

CLOSE_TIMEOUT_S = 60.0
REBUILD_WAIT_S = 10.0
"""A start waits so long for a local index that is built again. A larger one is built while calls come."""
FORGOTTEN_DAYS = 30.0
LOCAL_INDEX = ".index"
"""What the folder of the local index is called, behind the name of Milvus Lite's."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How a vector memory is kept. The defaults are those of the settings."""

    access: MilvusAccess | None = None
    """To a Milvus server."""
    call_timeout_s: float = 10.0
    """Bound on any call except a search."""
    flush: FlushPolicy = field(default_factory=FlushPolicy)
    may_flush: Callable[[], bool] = lambda: True
    """Returns False while the disk is too full for a flush."""
    quotas: Quotas = field(default_factory=Quotas)
    forgotten_days: float = FORGOTTEN_DAYS
    """After which forgotten memories are erased."""
    relate: Relate | None = relate_by_rules
    """Finds duplicates and contradictions when a memory is written. None: nothing looks for them."""
    search: SearchParts = field(default_factory=SearchParts)
    erasers: Sequence[Eraser] = ()
    """What else an erasure has to reach."""
    now_s: Callable[[], float] = time.time


DEFAULT_OPTIONS = TextOptions()


class VectorMemory(Exchange, Erasing, Consolidating, Searching, Pinning, Reembedding):
    """Memories of all tenants: a journal in the registry, and stores that keep and find them.

    Create it with `open`, end it with `close`. It belongs to one event loop.

    1. A write is acknowledged when it is in the journal.
    2. `settling.py` brings the write into the store that is searched, and into Milvus, and drops it from the
       journal when it is durable there.
    3. Beside Milvus Lite, which only keeps the memories, a local index finds them (`local/`). It is derived,
       and built again where it is missing. A Milvus server does both.
    4. The registry has the namespaces, and what they hold. Reads go on without the registry.

    The calls are in the files of its parts: `writes.py`, `batches.py`, `reads.py`, `erasing.py`,
    `consolidating.py`, `searching.py`, `following.py`, `exchange.py`, `pinning.py`, `reembedding.py`.

    Every method raises InvalidField for a name or value that breaks a rule, and VectorStoreUnavailable when
    the store fails or is late. Writes and counts raise RegistryUnavailable. A write that raises one of the
    two may still have happened. Repeating it is safe.
    """

    def __init__(self, parts: Parts, options: TextOptions, folders: dict[str, Path]) -> None:
        """For `open`."""
        super().__init__(parts)
        self.search_parts = options.search
        self.reranking = None
        self.reindexing = None
        self.erasers = list(options.erasers)
        self.folders = folders
        self._forgotten_s = options.forgotten_days * DAY_S
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def open(
        cls,
        uri: str,
        embedder: Embedder | CachedEmbedding,
        registry_url: str,
        options: TextOptions = DEFAULT_OPTIONS,
    ) -> Self:
        """Open a local store, or get ready to use a remote one.

        A remote Milvus or a registry that is down does not stop this. Calls fail until it is up.

        uri: a path that ends in `.db` (Milvus Lite, for one process at a time), or `http(s)://host:port`.
        registry_url: the Redis that has the journal.
        Raises InvalidField for a path with another ending, EmbedderChanged when another model has embedded
        the memories (no search would find them), and VectorStoreHeld, VectorStoreDamaged or
        VectorStoreUnavailable when a local store cannot be opened.
        """
        is_local = is_local_uri(uri)
        if is_local and not uri.endswith(".db"):
            raise InvalidField(
                "milvus uri", "must be a path that ends in .db (Milvus Lite) or http(s)://host:port"
            )
        embedding = embedder if isinstance(embedder, CachedEmbedding) else CachedEmbedding(embedder)
        vectors = embedding.embedder.vectors
        index = VectorIndex(
            uri, vectors, options.access, is_searched=not is_local, call_timeout_s=options.call_timeout_s
        )
        folder = Path(f"{uri.removesuffix('.db')}{LOCAL_INDEX}")
        local = LocalStore(folder, vectors, call_timeout_s=options.call_timeout_s) if is_local else None
        journal = Journal(registry_url, options.quotas, model_of(embedding.embedder))
        settling = Settling(
            journal, index, local, dim=vectors.dim, flush=options.flush, may_flush=options.may_flush
        )
        parts = Parts(index, local, journal, settling, embedding, options.now_s, options.relate)
        folders = {"Milvus Lite": Path(uri), "the local index": folder} if is_local else {}
        memory = cls(parts, options, folders)
        try:
            await memory._begin()
        except BaseException:
            await memory.close()
            raise
        memory._tasks = [
            asyncio.create_task(settling.run(), name="memserve-settling"),
            asyncio.create_task(memory.run_purges(memory._forgotten_s), name="memserve-purging"),
        ]
        return memory

    async def close(self) -> None:
        """Finish the calls under way, flush, and release the store.

        Safe to call twice. Every later call of another method raises VectorStoreUnavailable.
        """
        if self._closed:
            return
        self._closed = True
        await self._writer.finish()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._tasks:
            try:
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self.settling.settle_now()
            except (*MILVUS_ERRORS, MemserveError, FlushNotVerified) as error:
                log.warning(
                    "what Milvus has not durably written stays in the journal for the next start: %s",
                    one_line(error),
                )
        self.embedding.close()
        if self.reranking is not None:
            self.reranking.close()
        if self.settling.local is not None:
            await self.settling.local.close()
        await self._index.close(clean=self.settling.is_settled)
        await self._journal.close()

    @property
    def rebuild(self) -> RebuildFigures | None:
        """How far the local index is. None: Milvus itself is searched."""
        return None if self._local is None else self._local.rebuild

    @property
    def embedder(self) -> Embedder:
        return self.embedding.embedder

    async def _begin(self) -> None:
        """Open the stores and replay the journal.

        A local store has to come up. Anything else that fails is tried again in the background.
        """
        model = model_of(self.embedding.embedder)
        with contextlib.suppress(RegistryUnavailable):  # logged below
            if before := await self._journal.embedded_before(model):
                raise EmbedderChanged(before, model.name)
        try:
            # Not bounded in time: recovery reads all that a killed process left.
            await self._index.reopen(lambda: None)
            if self.settling.local is not None:
                await self.settling.local.open()
            await self.settling.open()
            await self.drop_outdated()
        except (*MILVUS_ERRORS, FlushNotVerified, RegistryUnavailable, VectorStoreUnavailable) as error:
            if self._index.is_local and not self._index.is_open:
                raise VectorStoreUnavailable(f"it cannot be opened: {one_line(error)}") from error
            log.warning("the vector memory starts all the same, and goes on with this: %s", one_line(error))
        if self.settling.local is not None:
            self.settling.local.begin_mending()
            await self.settling.local.wait_until_whole(REBUILD_WAIT_S)
        try:
            await self._namespaces.learn()
            if await self._journal.syncs_every_write() is False:
                log.warning(
                    "the registry Redis does not sync every write (appendonly yes, appendfsync always): what "
                    "is acknowledged may be lost when it is killed or the power fails"
                )
        except RegistryUnavailable as error:
            log.warning("the vector memory starts without the registry: %s", error)
