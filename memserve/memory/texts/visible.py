"""Brings writes into the local index, where searches find them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial

from memserve.errors import MemserveError
from memserve.memory.texts.applied import BATCH, AppliedWrites, SettlingFigures
from memserve.memory.texts.index import MILVUS_ERRORS, OWN_WORK, VectorIndex, one_line
from memserve.memory.texts.journal import Journal
from memserve.memory.texts.journal_entries import Write
from memserve.memory.texts.loss import missing_memories
from memserve.memory.texts.milvus_client import Vectors
from memserve.memory.texts.rebuilding import rebuild, repair
from memserve.memory.texts.searched import LocalStore

TIMEOUT_S = 30.0
REBUILD_RETRY_S = 5.0

log = logging.getLogger(__name__)


class LocalWriter:
    """Writes that come while a batch is written are the next batch: one commit for all of them.

    When the local index fails, its writes are unapplied until it is open again, and reads heed them.
    """

    def __init__(self, index: VectorIndex, store: LocalStore, figures: SettlingFigures) -> None:
        self.store = store
        self.writes = AppliedWrites()
        """What the local index has."""
        self._index = index
        self._figures = figures
        self._commit = asyncio.Lock()
        self._queue: list[Write] = []
        # How many writes have come, and how many have been taken from the queue.
        self._came = self._taken = 0
        self._needs = "open"
        # The keys that came since the index was begun anew.
        self._written: set[str] = set()
        self._rebuilding: asyncio.Task[None] | None = None

    @property
    def needs_mending(self) -> bool:
        return bool(self._needs)

    @property
    def last_call_s(self) -> float:
        return self.store.last_call_s

    async def open(self) -> None:
        """Raises VectorStoreHeld, OSError."""
        why = await self.store.open()
        self._needs = "rebuild" if why else ""
        self._written = self.writes.watch_keys()
        if why:
            log.warning("the local index is built again: %s", why)

    async def apply(self, writes: Sequence[Write]) -> None:
        """On return the local index has the writes. If it has failed, it gets them when it is open again."""
        for write in writes:
            self.writes.add_unapplied(write)
        self._queue.extend(writes)
        self._came += len(writes)
        last = self._came
        async with self._commit:
            while self._taken < last:
                batch, self._queue = self._queue[:BATCH], self._queue[BATCH:]
                self._taken += len(batch)
                await self._bring(batch)

    async def compare(self, journal: Journal) -> None:
        """Each of the index and Milvus Lite is made whole from the other one, where the registry counts more
        than it has: the index later, in the background, Milvus Lite now.
        """
        if self._needs or self.writes.unapplied:
            return
        held = await self.store.read(OWN_WORK, lambda store: store.row_count(timeout_s=TIMEOUT_S))
        totals = await journal.totals()
        lost = sum(self._figures.lost.values())
        if held == totals.records and lost:
            await repair(self._index, self.store)
            self._figures.lost = await missing_memories(journal, self._index)
        elif held != totals.records - lost:
            log.warning("the local index has %d of %d memories and is built again", held, totals.records)
            await self._begin_anew()

    async def mend(self) -> None:
        """Open the index again after a failure, and begin a rebuild where one is due. Raises OSError."""
        if self._needs == "open":
            async with self._commit:
                await self.open()
                self.writes.distrust()
        if not self._needs and self.writes.unapplied:
            await self.apply(list(self.writes.unapplied.values()))
        self.begin_mending()

    def begin_mending(self) -> None:
        """Begin a rebuild in the background, where one is due."""
        if self._needs == "rebuild" and (self._rebuilding is None or self._rebuilding.done()):
            self._rebuilding = asyncio.create_task(self._rebuild(), name="memserve-rebuilding")

    async def close(self) -> None:
        if self._rebuilding is not None:
            self._rebuilding.cancel()
            await asyncio.gather(self._rebuilding, return_exceptions=True)
        await self.store.close()

    async def _bring(self, batch: list[Write]) -> None:
        bring = partial(self.writes.bring, writes=batch, timeout_s=TIMEOUT_S)
        try:
            await self.store.write(OWN_WORK, bring)
        except (*MILVUS_ERRORS, MemserveError) as error:
            self._figures.failures += 1
            self._needs = self._needs or "open"
            self.writes.distrust()
            log.warning("the local index failed, and is opened again: %s", one_line(error))

    async def wait_until_whole(self, timeout_s: float) -> None:
        """Wait for a rebuild that is under way, but no longer than this."""
        if self._rebuilding is not None:
            await asyncio.wait([self._rebuilding], timeout=timeout_s)

    async def _begin_anew(self) -> None:
        async with self._commit:
            await self.store.start_anew()
            self._needs = "rebuild"
            self.writes.distrust()
            self._written = self.writes.watch_keys()

    async def serve(self, vectors: Vectors) -> None:
        """Build the index again from the collection of another model. Nothing may be on its way."""
        if self._rebuilding is not None:
            self._rebuilding.cancel()
            await asyncio.gather(self._rebuilding, return_exceptions=True)
        async with self._commit:
            self._needs = "another model"
            await self.store.serve(vectors)
            self.writes.forget_all()
            self._written = self.writes.watch_keys()
            self._needs = "rebuild"
        self.begin_mending()

    async def _rebuild(self) -> None:
        """Until it succeeds."""
        while self._needs == "rebuild":
            try:
                if waiting := list(self.writes.unapplied.values()):
                    await self.apply(waiting)
                await rebuild(self._index, self.store, self._written)
                self._needs = ""
            except (*MILVUS_ERRORS, MemserveError) as error:
                self._figures.failures += 1
                log.warning("the local index is not complete, and is built again: %s", one_line(error))
                await asyncio.sleep(REBUILD_RETRY_S)
                await self._begin_anew()
