"""The connection to Milvus and the threads that its blocking client runs on."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from memserve.errors import VectorStoreUnavailable
from memserve.memory.texts.milvus import (
    MilvusAccess,
    MilvusFailed,
    MilvusMemories,
    Vectors,
    is_local_uri,
    milvus_failures,
)
from memserve.processes.backoff import pause_s
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

    def __init__(
        self,
        uri: str,
        vectors: Vectors,
        access: MilvusAccess | None,
        *,
        is_searched: bool,
        call_timeout_s: float,
    ) -> None:
        """access: to a server. None: it wants to see nothing.

        is_searched: False where the local index finds the memories, and Milvus only keeps them.
        """
        self.is_local = is_local_uri(uri)
        self.call_timeout_s = call_timeout_s
        self.last_call_s = 0.0
        self._uri = uri
        self._vectors = vectors
        self._access = access or MilvusAccess()
        self._is_searched = is_searched
        self._write_thread = FairThreads("vector-store", 1)
        self._read_threads = (
            self._write_thread if self.is_local else FairThreads("vector-store-read", 4, share=leave_one)
        )
        self._sync_thread = FairThreads("vector-store-sync", 1)
        self._connect_lock = threading.Lock()
        self._store: MilvusMemories | None = None
        # Calls under way, by connection.
        self._calls: Counter[MilvusMemories] = Counter()
        self._must_prepare = False
        # Starts of Milvus Lite that failed in a row, and when it may be started again.
        self._failed_starts = 0
        self._start_at_s = 0.0
        self._closed = False

    @property
    def is_open(self) -> bool:
        return self._store is not None

    @property
    def has_ended(self) -> bool:
        """Whether the process of Milvus Lite has ended. `reopen` starts it again."""
        store = self._store
        return store is not None and store.has_ended

    async def read(self, tenant: str, call: Callable[[MilvusMemories], T]) -> T:
        """Run a blocking call in the tenant's turn. Raises one of MILVUS_ERRORS.

        A call that is cancelled before its turn never runs. A call that has begun runs on to its own timeout.
        """
        return await self._on(self._read_threads, tenant, lambda: self._call(call))

    async def write(self, tenant: str, call: Callable[[MilvusMemories], T]) -> T:
        """As `read`, on the writing thread."""
        return await self._on(self._write_thread, tenant, lambda: self._call(call))

    async def sync(self, call: Callable[[MilvusMemories], T]) -> T:
        """As `read`, on a thread beside the others, for what only syncs files: a busy disk takes seconds."""
        return await self._on(self._sync_thread, OWN_WORK, lambda: self._call(call))

    async def reconnect(self) -> None:
        """Connect to a Milvus server anew, with the certificates of now. Does nothing without them.

        Calls under way end on the connection before. Raises one of MILVUS_ERRORS; then that one stays.
        """
        if self._store is not None and not self.is_local and self._access.tls is not None:
            await self._on(self._sync_thread, OWN_WORK, self._connect_anew)

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

    async def serve(self, vectors: Vectors) -> None:
        """Use the collection of another model from now on. No call may be under way."""

        def serve(store: MilvusMemories) -> None:
            store.serve(vectors)
            self._vectors = vectors

        await self.write(OWN_WORK, serve)

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

    def _call(self, call: Callable[[MilvusMemories], T]) -> T:
        store = self._connected(counted=True)
        try:
            return call(store)
        finally:
            with self._connect_lock:
                self._calls[store] -= 1
                was_last = store is not self._store and not self._calls[store]
            if was_last and not self.is_local:
                self._end(store)

    def _connect_anew(self) -> None:
        fresh = self._connect()
        with self._connect_lock:
            before, self._store = self._store, fresh
            unused = before is not None and not self._calls[before]
        if before is not None and unused:
            self._end(before)

    def _connect(self) -> MilvusMemories:
        if time.monotonic() < self._start_at_s:
            raise MilvusFailed("Milvus Lite could not be started, and is started again in a moment")
        try:
            store = MilvusMemories(
                self._uri,
                self._access,
                self._vectors,
                is_searched=self._is_searched,
                timeout_s=self.call_timeout_s,
            )
        except BaseException:
            if self.is_local:
                self._failed_starts += 1
                self._start_at_s = time.monotonic() + pause_s(self._failed_starts)
            raise
        self._failed_starts = 0
        return store

    def _end(self, store: MilvusMemories) -> None:
        self._calls.pop(store, None)
        store.close(clean=False)

    def _connected(self, reopen: bool = False, counted: bool = False) -> MilvusMemories:
        with self._connect_lock:
            if reopen and self.is_local and self._store is not None:
                self._store.probe()
                store, self._store = self._store, None
                store.close(clean=False)
            if self._store is None:
                self._store = self._connect()
            elif self._store.has_ended:
                raise MilvusFailed("Milvus Lite's process has ended, and is started again in a moment")
            elif self._must_prepare or reopen:
                self._store.prepare(timeout_s=self.call_timeout_s)
            self._must_prepare = False
            self._calls[self._store] += counted
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
