"""The store that is searched, and its threads: the local index beside Milvus Lite, or a Milvus server."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from memserve.errors import VectorStoreUnavailable
from memserve.memory.texts.index import OWN_WORK
from memserve.memory.texts.local.index import LocalIndex
from memserve.memory.texts.local.schema import IndexNeedsRebuild
from memserve.memory.texts.milvus_client import Vectors
from memserve.memory.texts.store import RecordStore
from memserve.turns import FairThreads, leave_one, on_own_thread

READ_THREADS = 3

log = logging.getLogger(__name__)
T = TypeVar("T")


class Searched(Protocol):
    """A store of records, called from an event loop. `VectorIndex` and `LocalStore` are such."""

    call_timeout_s: float

    async def read(self, tenant: str, call: Callable[[RecordStore], T]) -> T: ...

    async def write(self, tenant: str, call: Callable[[RecordStore], T]) -> T: ...


@dataclass
class RebuildFigures:
    """How far the local index is."""

    done: int = 0
    """Records that have been read from Milvus Lite."""
    total: int = 0
    is_under_way: bool = False
    """Searches meanwhile answer from what is there, and say that they are cut."""


class LocalStore:
    """The local index in a folder, called from an event loop. One thread writes, several read.

    The index is derived: it is built again from Milvus Lite and from the journal.
    """

    def __init__(self, folder: Path, vectors: Vectors, *, call_timeout_s: float) -> None:
        self.call_timeout_s = call_timeout_s
        self.rebuild = RebuildFigures()
        self.last_call_s = 0.0
        self._folder = folder
        self._vectors = vectors
        self._index: LocalIndex | None = None
        self._write_thread = FairThreads("local-index", 1)
        # One thread more than a tenant may have.
        self._read_threads = FairThreads("local-index-read", READ_THREADS, share=leave_one)
        self._closed = False

    async def open(self) -> str:
        """Open, or open anew after a failure. Returns "", or why the index is empty and must be rebuilt.

        Raises VectorStoreHeld, and OSError when it can be neither opened nor created.
        """
        return await self._on(self._write_thread, OWN_WORK, self._open_blocking)

    async def start_anew(self) -> None:
        """Begin a rebuild with an empty index. Until `complete` the next start begins one too, and words find
        nothing.
        """
        await self._on(self._write_thread, OWN_WORK, self._start_anew_blocking)

    async def serve(self, vectors: Vectors) -> None:
        """Begin a rebuild with an empty index for another model's vectors."""

        def begin() -> None:
            self._vectors = vectors
            self._start_anew_blocking()

        await self._on(self._write_thread, OWN_WORK, begin)

    async def complete(self) -> None:
        """The rebuild has ended."""
        await self.write(OWN_WORK, lambda store: store.finish_rebuild())

    async def read(self, tenant: str, call: Callable[[LocalIndex], T]) -> T:
        """Run a blocking call in the tenant's turn. Raises OSError."""
        return await self._on(self._read_threads, tenant, lambda: call(self._opened()))

    async def write(self, tenant: str, call: Callable[[LocalIndex], T]) -> T:
        """As `read`, on the writing thread."""
        return await self._on(self._write_thread, tenant, lambda: call(self._opened()))

    async def sync(self) -> None:
        """On return all that was written is on disk. Raises OSError."""
        await self.write(OWN_WORK, LocalIndex.sync)

    async def close(self) -> None:
        """Finish the calls under way, and release the folder."""
        self._closed = True
        await on_own_thread(self._close_blocking)

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

    def _opened(self) -> LocalIndex:
        if self._index is None:
            raise OSError("the local index is not open")
        return self._index

    def _open_blocking(self) -> str:
        self._close_index()
        try:
            self._index = LocalIndex.open(self._folder, self._vectors.dim, self._vectors.embedder)
        except IndexNeedsRebuild as error:
            self._begin_anew()
            return error.detail
        return ""

    def _start_anew_blocking(self) -> None:
        self._close_index()
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._index = LocalIndex.begin_rebuild(self._folder, self._vectors.dim, self._vectors.embedder)

    def _close_index(self) -> None:
        index, self._index = self._index, None
        if index is not None:
            index.close()

    def _close_blocking(self) -> None:
        for threads in (self._read_threads, self._write_thread):
            threads.close(wait=True)
        self._close_index()
