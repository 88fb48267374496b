"""The connection to Milvus and the threads that its blocking client runs on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from memserve.errors import VectorStoreUnavailable
from memserve.memory.texts.milvus import MilvusFailed, MilvusMemories, Vectors, is_local_uri, milvus_failures
from memserve.turns import FairThreads, leave_one, on_own_thread

# What a call to Milvus may raise.
MILVUS_ERRORS = (MilvusFailed, OSError)
# The "tenant" of memserve's own work, when turns are taken. No tenant has this name.
OWN_WORK = ""

T = TypeVar("T")


class VectorIndex:
    """Milvus, called from an event loop.

    The blocking client runs on threads of its own. Milvus Lite is not safe under concurrency and has one
    thread. A Milvus server has one thread for writes and several for reads. Tenants take turns at the
    threads.
    """

    def __init__(self, uri: str, vectors: Vectors, *, token: str, call_timeout_s: float) -> None:
        self.is_local = is_local_uri(uri)
        self.call_timeout_s = call_timeout_s
        self.last_call_s = 0.0
        self._uri = uri
        self._vectors = vectors
        self._token = token
        self._write_thread = FairThreads("vector-store", 1)
        self._read_threads = (
            self._write_thread if self.is_local else FairThreads("vector-store-read", 4, share=leave_one)
        )
        self._sync_thread = FairThreads("vector-store-sync", 1)
        self._connect_lock = threading.Lock()
        self._store: MilvusMemories | None = None
        self._must_prepare = False
        self._closed = False

    @property
    def is_open(self) -> bool:
        return self._store is not None

    async def read(self, tenant: str, call: Callable[[MilvusMemories], T]) -> T:
        """Run a blocking call in the tenant's turn. Raises one of MILVUS_ERRORS.

        A call that is cancelled before its turn never runs. A call that has begun runs on to its own timeout.
        """
        return await self._on(self._read_threads, tenant, lambda: call(self._connected()))

    async def write(self, tenant: str, call: Callable[[MilvusMemories], T]) -> T:
        """As `read`, on the writing thread."""
        return await self._on(self._write_thread, tenant, lambda: call(self._connected()))

    async def sync(self, call: Callable[[MilvusMemories], T]) -> T:
        """As `read`, on a thread beside the others, for what only syncs files: a busy disk takes seconds."""
        return await self._on(self._sync_thread, OWN_WORK, lambda: call(self._connected()))

    async def reopen(self, forget: Callable[[], None]) -> None:
        """Drop all that Milvus Lite has in memory, and begin from what is on disk.

        Prepare a remote Milvus again.

        A store that could not be opened again is not closed: reads go on with it.

        forget: called on the writing thread when the store is open again.
        Raises one of MILVUS_ERRORS, VectorStoreHeld or VectorStoreDamaged.
        """

        def open_anew() -> None:
            self._connected(reopen=True)
            forget()

        await self._on(self._write_thread, OWN_WORK, open_anew)

    def prepare_again(self) -> None:
        """Have the store prepared before its next call.

        The connection to a restarted Milvus comes back by itself. The collection may not be loaded there.
        """
        self._must_prepare = True

    async def close(self, *, clean: bool) -> None:
        """Finish the calls under way and disconnect.

        clean: the last flush is verified, and nothing was written since.
        """
        self._closed = True
        await on_own_thread(lambda: self._close_blocking(clean))

    async def _on(self, threads: FairThreads, tenant: str, call: Callable[[], T]) -> T:
        if self._closed:
            raise VectorStoreUnavailable("it is closed")
        self.last_call_s = time.monotonic()

        def run() -> T:
            with milvus_failures():
                return call()

        try:
            return await threads.run(tenant, run)
        except RuntimeError:
            if self._closed:
                raise VectorStoreUnavailable("it is closed") from None
            raise

    def _connected(self, reopen: bool = False) -> MilvusMemories:
        with self._connect_lock:
            if reopen and self.is_local and self._store is not None:
                self._store.probe()
                store, self._store = self._store, None
                store.close(clean=False)
            if self._store is None:
                self._store = MilvusMemories(
                    self._uri, self._token, self._vectors, timeout_s=self.call_timeout_s
                )
            elif self._must_prepare or reopen:
                self._store.prepare(timeout_s=self.call_timeout_s)
            self._must_prepare = False
            return self._store

    def _close_blocking(self, clean: bool) -> None:
        for threads in (self._sync_thread, self._read_threads, self._write_thread):
            threads.close(wait=True)
        if self._store is not None:
            self._store.close(clean=clean)
            self._store = None


def one_line(error: BaseException) -> str:
    """An error's text for a log or a message: one line of at most 200 characters."""
    return " ".join((str(error) or type(error).__name__).split())[:200]
