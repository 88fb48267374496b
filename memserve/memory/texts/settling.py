"""Brings journaled writes into Milvus, and drops them from the journal when they are durable there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from memserve.errors import MemserveError, QuotaExceeded, VectorStoreUnavailable
from memserve.memory.texts.index import MILVUS_ERRORS, OWN_WORK, VectorIndex
from memserve.memory.texts.journal import Journal, Write
from memserve.memory.texts.milvus import MilvusMemories

FLUSH_WITHIN_S = 60.0
FLUSH_TIMEOUT_S = 120.0
BATCH = 256
# What a search costs for each row that is not flushed, which Milvus Lite looks at in Python; measured, of
# texts of 200 bytes to 4 KB.
SCAN_ROW_S = 0.0001
RETRY_MIN_S = 1.0
TURN_RETRY_S = 0.05
RETRY_MAX_S = 30.0
# A remote Milvus has several gateways: another's call of this age can no longer be under way, and write over
# a newer one.
SETTLED_REMOTE_S = 30.0
ADOPT_EVERY_S = 120.0

logger = logging.getLogger(__name__)


class FlushNotVerified(Exception):
    """Milvus said that it had flushed, and what was written is not there."""


@dataclass
class SettlingFigures:
    """What became of it. failures: flushes, replays and writes to Milvus that failed. lost: memories that are
    counted and not in Milvus, by tenant key and namespace; found when the store was opened last.
    """

    flushes: int = 0
    failures: int = 0
    replayed: int = 0
    lost: dict[tuple[str, str], int] = field(default_factory=dict)


class Settling:
    """Every write goes journal, Milvus, flush, verification, and out of the journal: in this order, and again
    from the journal when Milvus fails, after a restart and after a reconnect. What is in the journal stays
    there until Milvus has been asked for it after a flush.

    What Milvus has is noted on the index's one writing thread, in the order in which it was written.
    Everything else is for one event loop.

    unapplied: by memory key, the writes that Milvus does not have yet: reads are to heed them.
    is_trusted: False when what Milvus has in memory may differ from what it has on disk: nothing is dropped
    before a replay. is_counted: whether the registry has the counts of what is in Milvus; None while that is
    unknown. may_flush: False while a flush would meet a full disk; it then waits.
    """

    def __init__(
        self,
        journal: Journal,
        index: VectorIndex,
        *,
        flush_rows: int,
        flush_quiet_s: float,
        may_flush: Callable[[], bool],
    ) -> None:
        self.figures = SettlingFigures()
        self.unapplied: dict[str, Write] = {}
        self.is_trusted = False
        self.is_counted: bool | None = None
        self._journal = journal
        self._index = index
        self._flush_rows = flush_rows
        self._flush_quiet_s = flush_quiet_s
        self._may_flush = may_flush
        self._notes_lock = threading.Lock()
        # By memory key: what Milvus has and may not have durably yet, and the sequence of what it got last.
        self._applied: dict[str, Write] = {}
        self._sequences: dict[str, int] = {}
        self._due = asyncio.Event()
        self._flush_due = asyncio.Event()
        self._adopt_at_s = 0.0
        self._rest_until_s = 0.0
        self._applying: dict[asyncio.Task[None], int] = {}
        self._is_unsure = False
        self._one_at_a_time = asyncio.Lock()
        # Seconds that searches have spent on rows since the last flush, and that a flush takes.
        self._scanned_s = 0.0
        self._flush_s = 0.0

    @property
    def is_settled(self) -> bool:
        """Whether all that this gateway wrote is durable in Milvus."""
        return self.is_trusted and not self.unapplied and not self._applied

    def apply(self, tenant: str, write: Write) -> asyncio.Task[None]:
        """Begin to bring a journaled write into Milvus, in the tenant's turn. What fails is replayed: the
        write is durable already.
        """
        self._note_unapplied(write)
        task = asyncio.create_task(self._apply_in_turn(tenant, write))
        self._applying[task] = write.sequence
        task.add_done_callback(self._applying.pop)
        return task

    def note_search(self, tenant_key: str, calls: int) -> None:
        """So many calls of a search had to look at the tenant's rows that are not flushed. Once that cost as
        much as a flush, it is due.

        At most twice what the best choice of moments had cost, whatever the disk: the ski rental problem
        (Karlin et al. 1988).
        """
        if self._index.is_local and self._applied and not self._flush_due.is_set():
            with self._notes_lock:
                rows = sum(write.tenant_key == tenant_key for write in self._applied.values())
            self._scanned_s += calls * rows * SCAN_ROW_S
            if self._scanned_s >= self._flush_s:
                self._flush_due.set()

    def be_unsure(self) -> None:
        """The journal may hold a write that nobody brings into Milvus: its call ended before the answer."""
        self._is_unsure = True
        self._due.set()
        self._flush_due.set()

    async def be_sure(self) -> None:
        """See to it that Milvus, or `unapplied`, has all that this gateway journaled. Raises what failed."""
        if self._is_unsure:
            async with self._one_at_a_time:
                await self._adopt()

    async def open(self) -> None:
        """Begin with an index that was just opened: replay the journal and flush. Raises one of
        MILVUS_ERRORS, and RegistryUnavailable.
        """
        async with self._one_at_a_time:
            await self._replay(reopen=False)
            await self._settle()
            await self._look_for_loss()

    async def reopen(self) -> None:
        """The same with all that Milvus Lite has in memory forgotten."""
        async with self._one_at_a_time:
            await self._replay(reopen=True)
            await self._settle()
            await self._look_for_loss()

    async def run(self) -> None:
        """Until cancelled."""
        retry_s = RETRY_MIN_S
        while True:
            try:
                if self.is_trusted:
                    await self._wait_until_due()
                if self.is_trusted:
                    async with self._one_at_a_time:
                        await self._settle()
                elif self._may_flush():
                    await self.reopen()
                else:
                    # The store as it is answers searches; one opened anew may not come up on a full disk.
                    raise VectorStoreUnavailable("the disk is nearly full")
            except asyncio.CancelledError:
                raise
            except (*MILVUS_ERRORS, MemserveError, FlushNotVerified) as error:
                self.figures.failures += 1
                logger.warning(
                    "Milvus has not durably written what the journal holds, will try again in %g s: %s",
                    retry_s,
                    _line(error),
                )
            except Exception:
                self.figures.failures += 1
                logger.exception("settling goes on in %g s", retry_s)
            else:
                retry_s = RETRY_MIN_S
                continue
            self._due.set()
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, RETRY_MAX_S)

    async def settle_now(self) -> None:
        """Flush, verify and drop at once; for a clean end and for backups. Raises what failed."""
        while self._applying:
            await asyncio.wait(list(self._applying))
        async with self._one_at_a_time:
            if not self.is_trusted:
                await self._replay(reopen=True)
            await self._settle()

    @contextlib.asynccontextmanager
    async def held_still(self, target: Path) -> AsyncIterator[None]:
        """Copy a local store's files to `target`, with all flushed that was acknowledged, and keep the
        journal as it is while inside.

        Whatever is written meanwhile is in the journal. Raises what failed.
        """
        while self._applying:
            await asyncio.wait(list(self._applying))
        async with self._one_at_a_time:
            if not self.is_trusted:
                await self._replay(reopen=True)
            await self._settle()
            await self._index.write(OWN_WORK, lambda store: store.copy_to(target))
            yield

    async def _apply_in_turn(self, tenant: str, write: Write) -> None:
        while True:
            try:
                await self._index.write(tenant, lambda store: self._write(store, [write]))
                break
            except QuotaExceeded:  # the tenant's other calls wait for their turn
                await asyncio.sleep(TURN_RETRY_S)
            except (*MILVUS_ERRORS, MemserveError) as error:
                logger.warning(
                    "Milvus failed; what it may have lost comes back from the journal: %s", _line(error)
                )
                self.figures.failures += 1
                self._index.prepare_again()
                self._flush_due.set()
                break
        self._due.set()
        if len(self._applied) >= self._flush_rows:
            self._flush_due.set()

    def _write(self, store: MilvusMemories, writes: Sequence[Write]) -> None:
        """On the writing thread: those that Milvus has not got yet, and has not got a later one of."""
        fresh = [write for write in writes if self._sequences.get(write.key, 0) < write.sequence]
        puts = [
            (w.key, w.tenant_key, w.memory, w.vector)
            for w in fresh
            if w.memory is not None and w.vector is not None
        ]
        deletes = [write.key for write in fresh if write.memory is None]
        try:
            if puts:
                store.put(puts, timeout_s=self._index.call_timeout_s)
            if deletes:
                store.delete(deletes, timeout_s=self._index.call_timeout_s)
        except BaseException:
            self._distrust()
            raise
        with self._notes_lock:
            for write in fresh:
                self._applied[write.key] = write
                self._sequences[write.key] = write.sequence
                waiting = self.unapplied.get(write.key)
                if waiting is not None and waiting.sequence <= write.sequence:
                    del self.unapplied[write.key]

    def _note_unapplied(self, write: Write) -> None:
        with self._notes_lock:
            known = self.unapplied.get(write.key)
            if self._sequences.get(write.key, 0) < write.sequence and (
                known is None or known.sequence < write.sequence
            ):
                self.unapplied[write.key] = write

    def _distrust(self) -> None:
        """Nothing that Milvus has got since the last flush is certain now."""
        self.is_trusted = False
        self._forget()

    def _forget(self) -> None:
        with self._notes_lock:
            for key, write in self._applied.items():
                known = self.unapplied.get(key)
                if known is None or known.sequence < write.sequence:
                    self.unapplied[key] = write
            self._applied.clear()
            self._sequences.clear()

    async def _wait_until_due(self) -> None:
        """Until many rows wait, searches have paid for a flush, or nothing was asked for a while.

        Every call waits for a flush, and a slow disk may take seconds.
        """
        await asyncio.sleep(max(0.0, self._rest_until_s - time.monotonic()))
        waits_s = None if self._index.is_local else max(0.0, self._adopt_at_s - time.monotonic())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(waits_s):
                await self._due.wait()
        at_latest_s = time.monotonic() + FLUSH_WITHIN_S
        while self._applied and not self._flush_due.is_set():
            due_s = min(self._index.last_call_s + self._flush_quiet_s, at_latest_s)
            if due_s <= time.monotonic():
                break
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(due_s - time.monotonic()):
                    await self._flush_due.wait()
        self._due.clear()
        self._flush_due.clear()

    async def _settle(self) -> None:
        """Flush, ask Milvus for every write since the last flush, drop those that are as they must be. Raises
        FlushNotVerified.
        """
        if self._is_unsure or (not self._index.is_local and time.monotonic() >= self._adopt_at_s):
            await self._adopt()
        if not self._applied:
            return
        if not self._may_flush():
            raise VectorStoreUnavailable("the disk is nearly full, so it does not flush")
        batch, wrong = await self._index.write(OWN_WORK, self._flush_and_verify)
        if wrong and (wrong := await self._still_pending(wrong)):
            self._distrust()
            raise FlushNotVerified(f"{len(wrong)} of {len(batch)} writes are not there after a flush")
        self.figures.flushes += 1
        young = await self._journal.drop(batch, 0.0 if self._index.is_local else SETTLED_REMOTE_S)
        with self._notes_lock:
            for write in batch:
                if write.key not in young and self._applied.get(write.key) is write:
                    del self._applied[write.key]
            # An earlier write of the same memory may be under way still: it is to find that it is late.
            oldest = min(self._applying.values(), default=0)
            self._sequences = {
                key: sequence
                for key, sequence in self._sequences.items()
                if key in self._applied or 0 < oldest < sequence
            }
        if self._applied:
            self._due.set()
        if young:
            self._rest_until_s = time.monotonic() + SETTLED_REMOTE_S

    def _flush_and_verify(self, store: MilvusMemories) -> tuple[list[Write], list[Write]]:
        """On the writing thread. Returns what Milvus has got, and of that what it does not have after a
        flush: puts that are not there or differ, deletes that are.
        """
        if not self.is_trusted:
            raise VectorStoreUnavailable("it failed since, so nothing is dropped before a replay")
        with self._notes_lock:
            batch = list(self._applied.values())
        wrong = []
        begun_s = time.monotonic()
        try:
            store.flush(timeout_s=FLUSH_TIMEOUT_S)
            for start in range(0, len(batch), BATCH):
                page = batch[start : start + BATCH]
                there = store.get_many([write.key for write in page], timeout_s=FLUSH_TIMEOUT_S)
                wrong += [write for write in page if there.get(write.key) != write.memory]
        except BaseException:
            self._distrust()
            raise
        self._scanned_s, self._flush_s = 0.0, time.monotonic() - begun_s
        return batch, wrong

    async def _still_pending(self, writes: Collection[Write]) -> list[Write]:
        """Those that no other gateway has followed with a write of its own."""
        pending = await self._journal.pending_of([write.key for write in writes])
        return [
            write
            for write in writes
            if write.key in pending and pending[write.key].sequence == write.sequence
        ]

    async def _replay(self, *, reopen: bool) -> None:
        """Bring all of the journal into Milvus."""
        # Of the registry first: without it there is nothing to replay, and the store may stay as it is.
        self.is_counted = (await self._journal.totals()).is_counted
        if reopen:
            await self._index.reopen(self._forget)
        if not self.is_counted:
            counts = await self._index.write(OWN_WORK, lambda store: store.counts(timeout_s=FLUSH_TIMEOUT_S))
            await self._journal.take_over(counts)
            self.is_counted = True
        self.is_trusted = True
        try:
            replayed = await self._apply_journal()
        except BaseException:
            self.is_trusted = False
            raise
        if replayed:
            self.figures.replayed += replayed
            logger.warning("replayed %d writes from the journal into Milvus", replayed)

    async def _apply_journal(self) -> int:
        replayed = 0
        async for page in self._journal.pending():
            for write in page:
                self._note_unapplied(write)
            for start in range(0, len(page), BATCH):
                await self._index.write(OWN_WORK, partial(self._write, writes=page[start : start + BATCH]))
            replayed += len(page)
        self._due.set()
        self._adopt_at_s = time.monotonic() + ADOPT_EVERY_S
        return replayed

    async def _adopt(self) -> None:
        """Bring into Milvus what the journal has and nobody brings there. What others have done already does
        no harm again.
        """
        self._is_unsure = False
        try:
            await self._apply_journal()
        except BaseException:
            self._is_unsure = True
            raise

    async def _look_for_loss(self) -> None:
        """Compare the rows in Milvus with the memories that are counted. Writes meanwhile may hide a loss,
        and never make one up.
        """
        totals = await self._journal.totals()
        rows = await self._index.write(OWN_WORK, lambda store: store.row_count(timeout_s=FLUSH_TIMEOUT_S))
        if totals.memories - totals.pending <= rows:
            self.figures.lost = {}
            return
        before = await self._counted()
        held = await self._index.write(OWN_WORK, lambda store: store.counts(timeout_s=FLUSH_TIMEOUT_S))
        after = await self._counted()
        missing = {
            name: min(memories, after.get(name, 0)) - held.get(name, 0) for name, memories in before.items()
        }
        self.figures.lost = {name: memories for name, memories in missing.items() if memories > 0}
        if self.figures.lost:
            logger.error(
                "the vector store is damaged: of %d namespaces %d memories are missing; `memserve "
                "restore` brings back a backup",
                len(self.figures.lost),
                sum(self.figures.lost.values()),
            )

    async def _counted(self) -> dict[tuple[str, str], int]:
        """By tenant key and namespace, the memories that Milvus should have: those that are counted, without
        puts that wait.
        """
        counted = {
            (tenant, name): n
            async for tenant, names in self._journal.all_namespaces()
            for name, n in names.items()
        }
        async for page in self._journal.pending():
            for write in page:
                if write.memory is not None:
                    counted[write.tenant_key, write.namespace] = (
                        counted.get((write.tenant_key, write.namespace), 0) - 1
                    )
        return counted


def _line(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:200]
