"""Which journaled writes Milvus has, and which it does not have yet: the blocking half of settling."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from memserve.memory.texts.journal import Write
from memserve.memory.texts.migration import MigrationFigures
from memserve.memory.texts.milvus import MilvusMemories
from memserve.memory.texts.records import Record, first_history

BATCH = 256


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
        """The writes that Milvus does not have yet. Reads have to heed them."""
        self._lock = threading.Lock()
        # What Milvus has and may not have on disk yet.
        self._applied: dict[str, Write] = {}
        # The sequence of the last write that Milvus got.
        self._sequences: dict[str, int] = {}

    def __len__(self) -> int:
        """How many writes Milvus has that may not be durable."""
        return len(self._applied)

    def rows_of(self, tenant_key: str) -> int:
        """How many of the applied writes are the tenant's."""
        with self._lock:
            return sum(write.tenant_key == tenant_key for write in self._applied.values())

    def add_unapplied(self, write: Write) -> None:
        with self._lock:
            known = self.unapplied.get(write.key)
            if self._sequences.get(write.key, 0) < write.sequence and (
                known is None or known.sequence < write.sequence
            ):
                self.unapplied[write.key] = write

    def bring(self, store: MilvusMemories, writes: Sequence[Write], *, timeout_s: float) -> None:
        """Bring writes into Milvus, except a write that Milvus has already, or has a later write of.

        After an error Milvus may have some of the writes: call `distrust`.
        """
        fresh = [write for write in writes if self._sequences.get(write.key, 0) < write.sequence]
        puts = [
            Record(write.key, write.tenant_key, first_history(write.memory), write.vector)
            for write in fresh
            if write.memory is not None and write.vector is not None
        ]
        deletes = [write.key for write in fresh if write.memory is None]
        if puts:
            store.put(puts, timeout_s=timeout_s)
        if deletes:
            store.delete(deletes, timeout_s=timeout_s)
        with self._lock:
            for write in fresh:
                self._applied[write.key] = write
                self._sequences[write.key] = write.sequence
                waiting = self.unapplied.get(write.key)
                if waiting is not None and waiting.sequence <= write.sequence:
                    del self.unapplied[write.key]

    def flush(self, store: MilvusMemories, *, timeout_s: float) -> list[Write]:
        """Flush. Returns the writes that Milvus had before."""
        with self._lock:
            batch = list(self._applied.values())
        store.flush(timeout_s=timeout_s)
        return batch

    @staticmethod
    def missing(store: MilvusMemories, writes: Sequence[Write], *, timeout_s: float) -> list[Write]:
        """The writes that Milvus does not have: puts that are missing or differ, deletes of what exists."""
        held = store.get_many([write.key for write in writes], timeout_s=timeout_s)
        memories = {key: record.memory for key, record in held.items()}
        return [write for write in writes if memories.get(write.key) != write.memory]

    def distrust(self) -> None:
        """What Milvus has got and not durably written may be lost: all of it is unapplied again."""
        with self._lock:
            for key, write in self._applied.items():
                known = self.unapplied.get(key)
                if known is None or known.sequence < write.sequence:
                    self.unapplied[key] = write
            self._applied.clear()
            self._sequences.clear()

    def forget(
        self, durable: Sequence[Write], *, except_keys: Collection[str], oldest_under_way: int
    ) -> None:
        """Forget writes that are durable.

        except_keys: these stay.
        oldest_under_way: the sequence of the oldest write that is on its way to Milvus; 0 for none. An
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
