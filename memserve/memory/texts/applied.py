"""Which journaled writes a store has, and which it does not have yet: the blocking half of settling."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, runtime_checkable

from memserve.errors import VectorStoreUnavailable
from memserve.memory.texts.journal_entries import Write
from memserve.memory.texts.migration import MigrationFigures
from memserve.memory.texts.milvus import MilvusMemories
from memserve.memory.texts.milvus_rows import history_digest
from memserve.memory.texts.store import RecordStore

T = TypeVar("T")
BATCH = 256
# A tenant's words are indexed anew.
ERASE_TIMEOUT_S = 120.0


@runtime_checkable
class Erases(Protocol):
    """A store that takes what is deleted out of its files at once."""

    def erase(self, keys: Sequence[str], *, timeout_s: float) -> object: ...


class FlushNotVerified(Exception):
    """Milvus said that it had flushed, and a write is missing."""


@dataclass
class SettlingFigures:
    """Counts since the start."""

    flushes: int = 0
    failures: int = 0
    """Flushes, replays and writes to Milvus that failed."""
    replayed: int = 0
    """Writes that came into Milvus from the journal."""
    migration: MigrationFigures = field(default_factory=MigrationFigures)
    lost: dict[tuple[str, str], int] = field(default_factory=dict)
    """Memories that are counted and not in Milvus, by tenant key and namespace. Taken when the store was
    opened last."""


class AppliedWrites:
    """A write is first unapplied, then applied, and then durable and forgotten. Thread-safe.

    Of two writes of one memory the write with the higher sequence holds. The keys are memory keys.
    """

    def __init__(self) -> None:
        self.unapplied: dict[str, Write] = {}
        """The writes that the store does not have yet. Reads heed them where it is the searched store."""
        self._lock = threading.Lock()
        # What the store has and may not have on disk yet.
        self._applied: dict[str, Write] = {}
        # The sequence of the last write that the store got.
        self._sequences: dict[str, int] = {}
        # The keys that came since `watch_keys`. None: nobody asks.
        self._watched: set[str] | None = None

    def __len__(self) -> int:
        """How many writes the store has that may not be durable."""
        return len(self._applied)

    def add_unapplied(self, write: Write) -> None:
        with self._lock:
            known = self.unapplied.get(write.key)
            if self._sequences.get(write.key, 0) < write.sequence and (
                known is None or known.sequence < write.sequence
            ):
                self.unapplied[write.key] = write

    def some_unapplied(self, limit: int) -> list[Write]:
        """The first of the unapplied writes, in the order in which they came."""
        with self._lock:
            return list(itertools.islice(self.unapplied.values(), limit))

    def bring(self, store: RecordStore, writes: Sequence[Write], *, timeout_s: float) -> None:
        """Bring writes into the store, except a write that it has already, or has a later write of.

        After an error the store may have some of the writes: call `distrust`.
        """
        fresh = [write for write in writes if self._sequences.get(write.key, 0) < write.sequence]
        last = {write.key: write for write in sorted(fresh, key=lambda write: write.sequence)}
        puts = [write.record for write in last.values() if write.record is not None]
        deletes = [write.key for write in last.values() if write.record is None]
        if puts:
            store.put(puts, timeout_s=timeout_s)
        if deletes and isinstance(store, Erases):
            store.erase(deletes, timeout_s=ERASE_TIMEOUT_S)
        elif deletes:
            store.delete(deletes, timeout_s=timeout_s)
        with self._lock:
            for write in last.values():
                self._applied[write.key] = write
                self._sequences[write.key] = write.sequence
            for write in writes:
                waiting = self.unapplied.get(write.key)
                if waiting is not None and waiting.sequence <= self._sequences[write.key]:
                    del self.unapplied[write.key]
            if self._watched is not None:
                self._watched.update(last)

    def watch_keys(self) -> set[str]:
        """The keys that come into the store from now on are added to this set, until the next call."""
        with self._lock:
            self._watched = set()
            return self._watched

    def flush(self, store: MilvusMemories, *, timeout_s: float) -> list[Write]:
        """Flush. Returns the writes that Milvus had before."""
        batch = self.applied()
        store.flush(timeout_s=timeout_s)
        return batch

    def applied(self) -> list[Write]:
        with self._lock:
            return list(self._applied.values())

    @staticmethod
    def missing(store: MilvusMemories, writes: Sequence[Write], *, timeout_s: float) -> list[Write]:
        """The writes that Milvus does not have: puts that are missing or differ, deletes of what exists."""
        held = store.digests([write.key for write in writes], timeout_s=timeout_s)
        return [
            write
            for write in writes
            if held.get(write.key) != (write.record and history_digest(write.record.history))
        ]

    def distrust(self) -> None:
        """What the store has got and not durably written may be lost: all of it is unapplied again."""
        with self._lock:
            for key, write in self._applied.items():
                known = self.unapplied.get(key)
                if known is None or known.sequence < write.sequence:
                    self.unapplied[key] = write
            self._applied.clear()
            self._sequences.clear()

    def forget_all(self) -> None:
        """All is durable. Nothing may be on its way."""
        with self._lock:
            self.unapplied.clear()
            self._applied.clear()
            self._sequences.clear()

    def forget(
        self, durable: Sequence[Write], *, except_keys: Collection[str], oldest_under_way: int
    ) -> None:
        """Forget writes that are durable.

        except_keys: these stay.
        oldest_under_way: the sequence of the oldest write that is on its way to the store; 0 for none. An
        earlier write of a memory may still be under way. It must find that it is late, so that later
        sequences are kept for it.
        """
        with self._lock:
            for write in durable:
                if write.key not in except_keys and self._applied.get(write.key) is write:
                    del self._applied[write.key]
            self._sequences = {
                key: sequence
                for key, sequence in self._sequences.items()
                if key in self._applied or 0 < oldest_under_way < sequence
            }


class Trust:
    """Whether a store has what it said that it has."""

    def __init__(self, writes: AppliedWrites) -> None:
        self.is_whole = False
        self._writes = writes

    def lose(self) -> None:
        """What the store has got since the last flush is not certain any more."""
        self.is_whole = False
        self._writes.distrust()

    def step(self, step: Callable[[MilvusMemories], T]) -> Callable[[MilvusMemories], T]:
        """A step of settling, on its thread. Where it fails, the store is not trusted any more, also if
        nobody waits for it by then.
        """

        def taken(store: MilvusMemories) -> T:
            if not self.is_whole:
                raise VectorStoreUnavailable("it failed since, so nothing is dropped before a replay")
            try:
                return step(store)
            except BaseException:
                self.lose()
                raise

        return taken
