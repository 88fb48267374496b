"""Another embedding model takes the memories over, while calls go on.

1. `Reindexing.fill` embeds all memories into the new model's collection.
2. New writes wait, here at the gate and at other gateways by the registry, and those under way end. All that
   is acknowledged is brought into the old collection, and from there into the new one.
3. The registry records the new model, if no write has come since. From then on the journal takes no vector
   of another model, from no gateway.
4. No call is under way at that moment. The calls that wait go on with the new model.
5. The old collection is dropped.
6. A local index is built again. Then it is done: searches find all memories.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

import numpy as np

from memserve.domain import Memory, ReindexProgress
from memserve.errors import EmbedderChanged, MemserveError, RegistryUnavailable, VectorStoreUnavailable
from memserve.memory.texts.applied import FlushNotVerified
from memserve.memory.texts.core import Core
from memserve.memory.texts.embedder_record import EmbedderRecord
from memserve.memory.texts.embedding import BUNDLED
from memserve.memory.texts.encoders.cached import CachedEmbedding
from memserve.memory.texts.encoders.embedder import Embedder, Floats
from memserve.memory.texts.index import MILVUS_ERRORS, OWN_WORK, one_line
from memserve.memory.texts.journal_entries import Model
from memserve.memory.texts.milvus import MilvusMemories
from memserve.memory.texts.milvus_rows import history_digest
from memserve.memory.texts.reindexing import ReindexFigures, Reindexing

ALONE_S = 15.0
"""A switch waits so long for the calls under way."""
HOLD_S = 60.0
"""Writes are held for so long at most. A switch that takes longer lets them go, and is tried again."""
SWITCHES_MAX = 10
SWITCH_PAUSE_S = 1.0
DROP_TIMEOUT_S = 120.0
LOCAL_TIMEOUT_S = 3600.0
"""The local index goes on being built after this, and the change has ended."""

log = logging.getLogger(__name__)


class _NotYet(Exception):
    """A switch that is tried again."""


class Reembedding(Core):
    """The change to another embedding model."""

    reindexing: ReindexProgress | None
    """While it is under way. Set by the owner, before the first call."""

    async def reembed(
        self, target: CachedEmbedding, progress: Callable[[ReindexFigures], None] = lambda figures: None
    ) -> None:
        """Have another model embed all memories, and serve with it from then on. One call at a time.

        Cancelled or failed, it goes on at the next call with the same model. Once it has switched it is not
        cancelled before the new model serves.

        target: closed with the memory when it has taken over, else by the caller.
        Raises EmbedderChanged when another gateway has changed the model, VectorStoreUnavailable and
        RegistryUnavailable.
        """
        self._require_open()
        name = target.embedder.name
        self.reindexing = ReindexProgress(0, 0, name)

        def tell(figures: ReindexFigures) -> None:
            self.reindexing = ReindexProgress(figures.looked_at, figures.memories, name)
            progress(figures)

        try:
            await self._reembed(target, tell)
        finally:
            self.reindexing = None

    async def _reembed(self, target: CachedEmbedding, progress: Callable[[ReindexFigures], None]) -> None:
        if target.embedder.vectors.embedder == self.embedding.embedder.vectors.embedder:
            return
        record = EmbedderRecord(
            self._journal, model_of(self.embedding.embedder), is_only=self._local is not None
        )
        await record.claim()
        try:
            await self._fill_and_switch(target, record, progress)
        except EmbedderChanged as changed:
            self._outdated = changed
            raise
        except (*MILVUS_ERRORS, FlushNotVerified, TimeoutError) as error:
            raise VectorStoreUnavailable(one_line(error)) from error
        finally:
            if self._outdated is None:
                with contextlib.suppress(MemserveError):
                    await record.claim(0.0)

    async def drop_outdated(self) -> None:
        """Drop the collection that a switch has left. Raises one of MILVUS_ERRORS, RegistryUnavailable."""
        before = (await self._journal.state()).get("embedder_before")
        if before is not None:
            drop = partial(MilvusMemories.drop_vectors_of, embedder=before, timeout_s=DROP_TIMEOUT_S)
            await self._index.write(OWN_WORK, drop)
            await self._journal.forget_outdated()

    async def _fill_and_switch(
        self, target: CachedEmbedding, record: EmbedderRecord, progress: Callable[[ReindexFigures], None]
    ) -> None:
        embedding = self.embedding

        async def embed(memories: Sequence[Memory]) -> Floats:
            return await _embedded(embedding, target.embedder, [memory.text for memory in memories])

        await self.drop_outdated()
        await self.settling.settle_now()  # what waits is counted, and embedded before the switch
        reindexing = Reindexing(
            self._index,
            embedding.embedder.vectors,
            target.embedder.vectors,
            embed,
            progress=progress,
            watch=None if self._local is None else self.settling.watch_keys,
            check=record.claim,
        )
        for _ in range(SWITCHES_MAX):
            await reindexing.fill()
            try:
                await _unbroken(self._switch(target, record, reindexing))
            except _NotYet as reason:
                log.warning("the new embedding model does not take over yet: %s", reason)
                await asyncio.sleep(SWITCH_PAUSE_S)
                continue
            log.warning("memories are embedded by %s from now on", target.embedder.name)
            with contextlib.suppress(RegistryUnavailable, VectorStoreUnavailable, *MILVUS_ERRORS):
                await self.drop_outdated()  # the next start drops it otherwise
            embedding.close()
            if self.settling.local is not None:
                await self.settling.local.wait_until_whole(LOCAL_TIMEOUT_S)
            return
        raise VectorStoreUnavailable("writes and stores left no moment for the new embedding model")

    async def _switch(self, target: CachedEmbedding, record: EmbedderRecord, reindexing: Reindexing) -> None:
        """Raises _NotYet, with everything as it was."""
        try:
            async with contextlib.AsyncExitStack() as held:
                held.push_async_callback(_let_go, record)
                async with asyncio.timeout(HOLD_S):
                    await held.enter_async_context(self._writing.alone(ALONE_S))
                    await self._writer.finish()
                    sequence = await record.hold(HOLD_S)
                    if self._local is None:
                        self.settling.be_unsure()  # other gateways' writes
                    await held.enter_async_context(self.settling.settled())
                    await reindexing.finish()
                    await self._require_moved(reindexing)
                    await held.enter_async_context(self._calls.alone(ALONE_S))
                    switched = await record.switch(model_of(target.embedder), sequence)
                if not switched:
                    raise _NotYet("a write came meanwhile")
                await self._serve(target)
        except (*MILVUS_ERRORS, FlushNotVerified, RegistryUnavailable, VectorStoreUnavailable) as error:
            if self._outdated is not None:
                raise
            raise _NotYet(one_line(error)) from error
        except TimeoutError as error:
            raise _NotYet("calls under way, or the stores, took too long") from error

    async def _require_moved(self, reindexing: Reindexing) -> None:
        """Everything in the journal is in the new collection. Raises _NotYet."""
        async for page in self._journal.pending():
            held = await reindexing.digests([write.key for write in page])
            if any(
                held.get(write.key) != (write.record and history_digest(write.record.history))
                for write in page
            ):
                raise _NotYet("a write of another gateway is not there yet")

    async def _serve(self, target: CachedEmbedding) -> None:
        """Once the registry has the new model. What fails here has this gateway refuse calls until it starts
        again.
        """
        before, model = self.embedding.embedder.name, model_of(target.embedder)
        self._outdated = EmbedderChanged(model.name, before)
        self._journal.model = model
        await self.settling.serve(target.embedder.vectors)
        self.embedding = target
        self._outdated = None


def model_of(embedder: Embedder) -> Model:
    return Model(embedder.vectors.embedder, embedder.name, BUNDLED)


async def _embedded(embedding: CachedEmbedding, embedder: Embedder, texts: Sequence[str]) -> Floats:
    """Passages, in batches of the model, each in a turn on the threads of the embedding that serves."""
    rows: list[Floats] = []
    left = list(texts)
    while left:
        count = embedder.limits.fitting([len(text.encode()) for text in left])
        rows.append(await embedding.run_own(partial(embedder.embed, left[:count])))
        left = left[count:]
    return np.concatenate(rows)


async def _unbroken(work: Coroutine[Any, Any, None]) -> None:
    """Do the work to its end, also where the caller is cancelled."""
    task = asyncio.create_task(work, name="memserve-switching")
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


async def _let_go(record: EmbedderRecord) -> None:
    """Take writes again. Where the registry does not answer, the hold ends by itself."""
    with contextlib.suppress(RegistryUnavailable):
        await record.hold(0.0)
