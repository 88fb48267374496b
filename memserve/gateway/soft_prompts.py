"""The embeddings of soft prompts, which are a part of the block keys of prompts with one."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from functools import partial

from memserve.domain import EmbeddedRows
from memserve.errors import MemserveError, QuotaExceeded
from memserve.memory.modules.kinds.files import EmbeddingShape
from memserve.memory.modules.kinds.soft_prompt import read_rows
from memserve.memory.modules.memory import ParametricMemory
from memserve.processes.supervised import Background

log = logging.getLogger("memserve.gateway.soft_prompts")

KEPT_MAX_BYTES = 64 << 20
# A request waits so long for embeddings that this gateway has not read yet.
READ_BUDGET_S = 0.1
RETRY_S = 5.0
FAILED_MAX = 1024


class SoftPromptRows:
    """Reads them from the module store once, and keeps those that were used last."""

    def __init__(self, memory: ParametricMemory, background: Background) -> None:
        self._memory = memory
        self._background = background
        # By digest. Requests for the same embeddings wait for one reading.
        self._reading: dict[str, asyncio.Task[EmbeddedRows | None]] = {}
        self._shape = memory.base.embedding
        # Threads write, the event loop reads.
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, EmbeddedRows] = OrderedDict()
        self._kept_bytes = 0
        self._failed_s: OrderedDict[str, float] = OrderedDict()

    async def of(self, tenant: str, digest: str) -> EmbeddedRows | None:
        """The embeddings of a soft prompt. None where they cannot be read now.

        Without them nothing is known to be cached, and the request is answered all the same.
        """
        shape = self._shape
        if shape is None:
            return None
        with self._lock:
            kept = self._kept.get(digest)
            if kept is not None:
                self._kept.move_to_end(digest)
                return kept
        reading = self._reading.get(digest)
        if reading is None:
            failed_s = self._failed_s.get(digest)
            has_failed = failed_s is not None and time.monotonic() < failed_s + RETRY_S
            if has_failed or self._background.is_full:
                return None
            work = self._tried(tenant, digest, shape)
            reading = self._background.begin(f"reading the embeddings of {digest[:12]}", work)
            self._reading[digest] = reading
            reading.add_done_callback(lambda _: self._reading.pop(digest, None))
        try:
            async with asyncio.timeout(READ_BUDGET_S):
                # What has begun goes on, and the next request finds it.
                return await asyncio.shield(reading)
        except TimeoutError:
            return None

    async def _tried(self, tenant: str, digest: str, shape: EmbeddingShape) -> EmbeddedRows | None:
        try:
            return await self._memory.files.run(tenant, partial(self._read, digest, shape))
        except QuotaExceeded:
            return None
        except (MemserveError, OSError) as error:
            log.warning("the embeddings of %s cannot be read: %s", digest[:12], error)
            self._failed_s[digest] = time.monotonic()
            while len(self._failed_s) > FAILED_MAX:
                self._failed_s.popitem(last=False)
            return None

    def _read(self, digest: str, shape: EmbeddingShape) -> EmbeddedRows:
        folder = self._memory.blobs.local(digest)
        rows = read_rows(folder, shape.width, shape.dtype, shape.context_tokens // 2)
        with self._lock:
            if digest not in self._kept:
                self._kept[digest] = rows
                self._kept_bytes += len(rows.content)
            while self._kept_bytes > KEPT_MAX_BYTES and len(self._kept) > 1:
                self._kept_bytes -= len(self._kept.popitem(last=False)[1].content)
        return rows
