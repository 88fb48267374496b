"""The connection to Milvus and the threads that its blocking client runs on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

import grpc
from pymilvus.exceptions import MilvusException

from memserve.errors import VectorStoreUnavailable
from memserve.memory.texts.milvus import MilvusMemories, Vectors, is_local_uri
from memserve.turns import FairThreads, leave_one, on_own_thread

# What a call to Milvus fails with.
MILVUS_ERRORS = (MilvusException, grpc.RpcError, OSError)
# Whose turn it is when the work is memserve's own. No tenant is called so.
OWN_WORK = ""

T = TypeVar("T")


class VectorIndex:
    """Milvus, called from an event loop.

    The blocking client runs on threads of its own: a single one for Milvus Lite, which is not safe under
    concurrency, else one for writes and several for reads. Tenants take turns at them.
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
        self._connect_lock = threading.Lock()
        self._store: MilvusMemories | None = None
        self._must_prepare = False
        self._closed = False

    @property
    def is_open(self) -> bool:
        return self._store is not None

    async def read(self, tenant: str, call: Callable[[MilvusMemories], T]) -> T:
        """Run a blocking call in the tenant's turn.

        One that is given up before its turn never runs; one that has begun runs on to its own timeout.
        """
        return await self._on(self._read_threads, tenant, lambda: call(self._connected()))

    async def write(self, tenant: str, call: Callable[[MilvusMemories], T]) -> T:
        """The same on the one writing thread."""
        return await self._on(self._write_thread, tenant, lambda: call(self._connected()))

    async def reopen(self, forget: Callable[[], None]) -> None:
        """Let go of all that Milvus Lite has in memory, and begin from what is on disk. A remote Milvus is
        prepared again.

        forget: called on the writing thread when the store is open anew. Raises one of MILVUS_ERRORS,
        VectorStoreHeld or VectorStoreDamaged; as long as a store that is closed could not be opened again,
        reads go on with it as it is.
        """

        def open_anew() -> None:
            self._connected(reopen=True)
            forget()

        await self._on(self._write_thread, OWN_WORK, open_anew)

    def prepare_again(self) -> None:
        """A Milvus that was restarted may have lost more than the connection, which mends itself: its
        collection may not be loaded.
        """
        self._must_prepare = True

    async def close(self, *, clean: bool) -> None:
        """Finish the calls under way and disconnect. clean: the last flush is verified, and nothing was
        written since.
        """
        self._closed = True
        await on_own_thread(lambda: self._close_blocking(clean))

    async def _on(self, threads: FairThreads, tenant: str, call: Callable[[], T]) -> T:
        if self._closed:
            raise VectorStoreUnavailable("it is closed")
        self.last_call_s = time.monotonic()
        try:
            return await threads.run(tenant, call)
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
        for threads in (self._read_threads, self._write_thread):
            threads.close(wait=True)
        if self._store is not None:
            self._store.close(clean=clean)
            self._store = None
