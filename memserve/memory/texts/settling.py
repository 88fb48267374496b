"""Brings journaled writes into the stores, and drops them from the journal when they are durable there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from memserve.errors import MemserveError, QuotaExceeded, VectorStoreUnavailable
from memserve.memory.texts.applied import BATCH, AppliedWrites, FlushNotVerified, SettlingFigures, Trust
from memserve.memory.texts.due import FlushClock, FlushPolicy
from memserve.memory.texts.index import MILVUS_ERRORS, OWN_WORK, VectorIndex, one_line
from memserve.memory.texts.journal import Journal
from memserve.memory.texts.journal_entries import Write
from memserve.memory.texts.loss import missing_memories
from memserve.memory.texts.migration import move_old_memories
from memserve.memory.texts.milvus import MilvusMemories, Vectors
from memserve.memory.texts.searched import LocalStore
from memserve.memory.texts.usage import usage_of_all
from memserve.memory.texts.visible import LocalWriter

FLUSH_TIMEOUT_S = 120.0
LITE_BATCH = 32  # a search waits while so many writes are packed for Milvus Lite
RETRY_MIN_S, RETRY_MAX_S = 1.0, 30.0
TURN_RETRY_S = 0.05
# A remote Milvus has several gateways. A call of another gateway that is older than this has ended, and
# cannot write over a newer write any more.
SETTLED_REMOTE_S = 30.0
# So a call begins this long after its write was seen at the latest: with its own 10 s it ends before that.
APPLY_WITHIN_S = 15.0
# How often it is looked whether the process of Milvus Lite lives.
LOOK_S = 2.0
ADOPT_EVERY_S = 30.0  # until then searches do not find what a gateway journaled that died

log = logging.getLogger(__name__)
T = TypeVar("T")


class Settling:
    """Brings writes into the stores, and drops them from the journal.

    1. A write is in the journal before it comes here.
    2. It is brought into the store that is searched: the local index (`visible.py`), or a Milvus server.
    3. Beside a local index, many writes at once are brought into Milvus Lite, which nothing waits for.
    4. Milvus is flushed, and the local index is synced.
    5. Milvus is asked for the write. Only a write that is as it must be is verified.
    6. A verified write is dropped from the journal.

    The steps begin anew from the journal when a store fails, after a restart and after a reconnect. A write
    stays in the journal until step 5 has succeeded.

    Each store's one writing thread notes what it has, in the order in which it got it. Everything else
    belongs to one event loop.
    """

    def __init__(
        self,
        journal: Journal,
        index: VectorIndex,
        local: LocalStore | None,
        *,
        dim: int,
        flush: FlushPolicy,
        may_flush: Callable[[], bool],
    ) -> None:
        """dim: of the vectors.

        local: beside Milvus Lite. None for a Milvus server, which is searched itself.

        may_flush: returns False while a flush would meet a full disk. The flush then waits.
        """
        self.figures = SettlingFigures()
        self.is_counted: bool | None = None
        """Whether the registry has the counts of the memories in Milvus. None while that is unknown."""
        self._journal = journal
        self._index = index
        self._dim = dim
        self._may_flush = may_flush
        # What Milvus has.
        self._writes = AppliedWrites()
        self._trust = Trust(self._writes)
        self.local = None if local is None else LocalWriter(index, local, self.figures)
        """What the local index has. None: Milvus itself is searched."""
        self._clock = FlushClock(flush)
        self._adopt_at_s = 0.0
        # Tasks that bring writes into the searched store, with the lowest sequence of each.
        self._applying: dict[asyncio.Task[None], int] = {}
        self._is_unsure = False
        self._one_at_a_time = asyncio.Lock()

    @property
    def unapplied(self) -> dict[str, Write]:
        """By memory key, the writes that the searched store does not have yet. Reads have to heed them."""
        return self._writes.unapplied if self.local is None else self.local.writes.unapplied

    @property
    def needs_mending(self) -> bool:
        """Whether the local index is not complete: searches of it are cut, and reads ask Milvus Lite too."""
        return self.local is not None and self.local.needs_mending

    @property
    def is_trusted(self) -> bool:
        """False when Milvus may have something else in memory than on disk, or Milvus Lite has ended. Nothing
        is dropped before a replay."""
        return self._trust.is_whole and not self._index.has_ended

    @property
    def is_settled(self) -> bool:
        """Whether all that this gateway wrote is durable in Milvus."""
        return self.is_trusted and not self.unapplied and not self._waiting

    @property
    def _waiting(self) -> int:
        """How many writes are not durable in Milvus yet."""
        return len(self._writes) + len(self._writes.unapplied)

    def apply(self, tenant: str, writes: Sequence[Write], journaled_s: float) -> asyncio.Task[None]:
        """Begin to bring journaled writes into the searched store, in the tenant's turn.

        The writes are durable already. When a store fails, they are replayed from the journal.
        journaled_s: on the monotonic clock, not after they were journaled.
        """
        for write in writes:
            self._writes.add_unapplied(write)
        if self.local is not None:
            task = asyncio.create_task(self._apply_locally(self.local, writes))
        else:
            task = asyncio.create_task(self._apply_in_turn(tenant, writes, journaled_s))
        self._applying[task] = min(write.sequence for write in writes)
        task.add_done_callback(self._applying.pop)
        return task

    def be_unsure(self) -> None:
        """The journal may have a write that nobody brings into the stores, because the answer to its call was
        lost.
        """
        self._is_unsure = True
        self._clock.flush_now()

    async def be_sure(self) -> None:
        """Make sure that the searched store or `unapplied` has every write that this gateway journaled.

        Raises what failed.
        """
        if self._is_unsure:
            async with self._one_at_a_time:
                await self._adopt()

    async def open(self) -> None:
        """Begin with an index that was just opened: replay the journal, flush, and look for losses.

        Raises one of MILVUS_ERRORS, FlushNotVerified or RegistryUnavailable.
        """
        await self._begin(reopen=False)

    async def reopen(self) -> None:
        """As `open`, after all that Milvus Lite has in memory is dropped."""
        await self._begin(reopen=True)

    async def _begin(self, *, reopen: bool) -> None:
        async with self._one_at_a_time:
            await self._replay(reopen=reopen)
            await self._settle()
            self.figures.lost = await missing_memories(self._journal, self._index)
            if self.local is not None:
                await self.local.compare(self._journal)

    async def run(self) -> None:
        """Settle whenever it is due, until cancelled."""
        retry_s = RETRY_MIN_S
        while True:
            try:
                if self.is_trusted:
                    look_s = time.monotonic() + LOOK_S if self._index.is_local else self._adopt_at_s
                    await self._clock.wait(lambda: self._waiting, self._last_call_s, at_latest_s=look_s)
                if self.is_trusted:
                    async with self._one_at_a_time:
                        await self._settle()
                elif self._may_flush():
                    await self.reopen()
                else:
                    # The store as it is answers searches. On a full disk it might not come up again.
                    raise VectorStoreUnavailable("the disk is nearly full")
                if self.local is not None:
                    await self.local.mend()
            except asyncio.CancelledError:
                raise
            except (*MILVUS_ERRORS, MemserveError, FlushNotVerified) as error:
                self.figures.failures += 1
                log.warning(
                    "Milvus has not durably written what the journal holds, will try again in %g s: %s",
                    retry_s,
                    one_line(error),
                )
            except Exception:
                self.figures.failures += 1
                log.exception("settling goes on in %g s", retry_s)
            else:
                retry_s = RETRY_MIN_S
                continue
            self._clock.wake()
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, RETRY_MAX_S)

    async def settle_now(self) -> None:
        """Flush, verify and drop at once, for a clean end. Raises what failed."""
        async with self.settled():
            pass

    @contextlib.asynccontextmanager
    async def held_still(self, target: Path) -> AsyncIterator[None]:
        """Copy a local store's files to `target`, and drop nothing from the journal while inside.

        Everything that was acknowledged before is flushed first. What is written meanwhile is in the journal.
        The local index is not copied: it is built again. Raises what failed.
        """
        async with self.settled():
            await self._index.write(OWN_WORK, lambda store: store.copy_to(target))
            yield

    @contextlib.asynccontextmanager
    async def settled(self) -> AsyncIterator[None]:
        """Settle what was acknowledged so far, and settle nothing else while inside."""
        if applying := list(self._applying):
            await asyncio.wait(applying)
        async with self._one_at_a_time:
            if not self.is_trusted:
                await self._replay(reopen=True)
            await self._settle()
            yield

    def watch_keys(self) -> set[str]:
        """The keys that come into Milvus from now on are added to this set, until the next call."""
        return self._writes.watch_keys()

    async def serve(self, vectors: Vectors) -> None:
        """Go on with another model's collection. Inside `settled`, with no write on its way."""
        self._writes.forget_all()
        await self._index.serve(vectors)
        self._dim = vectors.dim
        if self.local is not None:
            await self.local.serve(vectors)

    async def _apply_locally(self, local: LocalWriter, writes: Sequence[Write]) -> None:
        await local.apply(writes)
        self._note_applied()

    async def _apply_in_turn(self, tenant: str, writes: Sequence[Write], journaled_s: float) -> None:
        while True:
            try:
                await self._index.write(tenant, lambda store: self._write(store, writes, journaled_s))
                break
            except QuotaExceeded:  # too many of the tenant's calls wait for their turn
                await asyncio.sleep(TURN_RETRY_S)
            except (*MILVUS_ERRORS, MemserveError) as error:
                log.warning(
                    "Milvus failed; what it may have lost comes back from the journal: %s", one_line(error)
                )
                self.figures.failures += 1
                self._index.prepare_again()
                self._clock.flush_now()
                break
        self._note_applied()

    def _note_applied(self) -> None:
        self._clock.wake()
        if self._waiting >= self._clock.policy.rows or (self.local is not None and self.local.needs_mending):
            self._clock.flush_now()

    def _write(self, store: MilvusMemories, writes: Sequence[Write], seen_s: float) -> None:
        """On the writing thread. seen_s: when they were in the journal, on the monotonic clock."""
        if not self._index.is_local and time.monotonic() - seen_s > APPLY_WITHIN_S:
            # Another gateway may have followed it with a write that has left the journal since.
            self._is_unsure = True
            raise VectorStoreUnavailable("a write has waited too long for its turn, and is looked up again")
        try:
            self._writes.bring(store, writes, timeout_s=self._index.call_timeout_s)
        except BaseException:
            self._trust.lose()
            raise

    def _last_call_s(self) -> float:
        return self._index.last_call_s if self.local is None else self.local.last_call_s

    async def _settle(self) -> None:
        """Flush, ask Milvus for every write since the last flush, and drop the verified ones from the
        journal.

        Raises FlushNotVerified.
        """
        if self._is_unsure or (not self._index.is_local and time.monotonic() >= self._adopt_at_s):
            await self._adopt()
        if not self._waiting:
            return
        if not self._may_flush():
            raise VectorStoreUnavailable("the disk is nearly full, so it does not flush")
        while self.local is not None and (page := self._writes.some_unapplied(LITE_BATCH)):
            await self._index.write(OWN_WORK, partial(self._write, writes=page, seen_s=0.0))
        batch, wrong = await self._flush_and_verify()
        if wrong and (wrong := await self._journal.still_pending(wrong)):
            self._trust.lose()
            raise FlushNotVerified(f"{len(wrong)} of {len(batch)} writes are not there after a flush")
        self.figures.flushes += 1
        invisible: set[str] = set()
        if self.local is not None:
            await self.local.store.sync()
            invisible = set(self.unapplied)
        durable = [write for write in batch if write.key not in invisible]
        young = await self._journal.drop(durable, 0.0 if self._index.is_local else SETTLED_REMOTE_S)
        oldest = min(self._applying.values(), default=0)
        self._writes.forget(durable, except_keys=young, oldest_under_way=oldest)
        if self.local is not None:
            self.local.writes.forget(durable, except_keys=young, oldest_under_way=oldest)
        if self._waiting:
            self._clock.wake()
        if young:
            self._clock.rest(SETTLED_REMOTE_S)

    async def _flush_and_verify(self) -> tuple[list[Write], list[Write]]:
        """Flush, sync the files, and ask Milvus for the writes that it had before the flush.

        Other calls come between the steps. None of them waits for the syncs, which take seconds on a busy
        disk.

        Returns the writes, and those of them that Milvus does not have.
        """
        flush = partial(self._writes.flush, timeout_s=FLUSH_TIMEOUT_S)
        batch = await self._index.write(OWN_WORK, self._trust.step(flush))
        if owners := sorted({write.tenant_key for write in batch if write.record is None}):
            # What is erased leaves the files before it leaves the journal.
            compact = partial(_compact, owners=owners)
            await self._index.write(OWN_WORK, self._trust.step(compact))
        await self._index.sync(self._trust.step(MilvusMemories.sync))
        wrong: list[Write] = []
        for start in range(0, len(batch), BATCH):
            page = partial(
                self._writes.missing, writes=batch[start : start + BATCH], timeout_s=FLUSH_TIMEOUT_S
            )
            wrong += await self._index.write(OWN_WORK, self._trust.step(page))
        return batch, wrong

    async def _replay(self, *, reopen: bool) -> None:
        """Bring all of the journal into the stores."""
        # The registry first: without it nothing can be replayed, and the store stays as it is.
        await self._journal.upgrade()
        self.is_counted = (await self._journal.totals()).is_counted
        if reopen:
            await self._index.reopen(self._writes.distrust)
        await move_old_memories(self._index, self._journal, self.figures.migration)
        if not self.is_counted:
            held = await usage_of_all(self._index, self._dim)
            await self._journal.take_over(held.usages, held.pinned)
            self.is_counted = True
        self._trust.is_whole = True
        try:
            replayed = await self._apply_journal()
        except BaseException:
            self._trust.is_whole = False
            raise
        if replayed:
            self.figures.replayed += replayed
            log.warning("replayed %d writes from the journal into Milvus", replayed)

    async def _apply_journal(self) -> int:
        replayed = 0
        asked_s = time.monotonic()
        async for page in self._journal.pending():
            for write in page:
                self._writes.add_unapplied(write)
            for start in range(0, len(page), BATCH):
                writes = page[start : start + BATCH]
                if self.local is not None:
                    await self.local.apply(writes)
                await self._index.write(OWN_WORK, partial(self._write, writes=writes, seen_s=asked_s))
            replayed += len(page)
            asked_s = time.monotonic()
        self._clock.wake()
        self._adopt_at_s = time.monotonic() + ADOPT_EVERY_S
        return replayed

    async def _adopt(self) -> None:
        """Bring all of the journal into the stores: perhaps nobody else brings some of it.

        Bringing a write again does no harm.
        """
        self._is_unsure = False
        try:
            await self._apply_journal()
        except BaseException:
            self._is_unsure = True
            raise


def _compact(store: MilvusMemories, *, owners: Sequence[str]) -> None:
    store.compact(owners, timeout_s=FLUSH_TIMEOUT_S)
