"""Embeds for the vector memory: off the event loop, in turns of tenants, in batches, and each text once."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from memserve.errors import EmbedderUnavailable, QuotaExceeded
from memserve.memory.texts.encoders.embedder import Embedder, Floats
from memserve.memory.texts.encoders.vector_cache import VectorCache, cache_key
from memserve.metrics.embedding import EmbeddingMetrics
from memserve.turns import RETRY_AFTER_S, WAITING_PER_TENANT, FairThreads, leave_one

CACHE_BYTES = 32 << 20
# One thread more than a tenant may have: a batch of one tenant does not hold up another tenant.
THREADS = 2
# How often a failing batch is called again in parts, to find the texts that are the reason.
CALLS_PER_BATCH = 64
CLOSED = "the vector memory is closed"


@dataclass(slots=True, eq=False)
class _Asked:
    """A text that is waited for."""

    key: bytes
    text: str
    size: int
    """Bytes of UTF-8."""
    answer: asyncio.Future[Floats | Exception]
    """Its exception is a result, because nobody may be left to take it."""
    waiters: int = 0
    """0: nobody waits any more. It is left out when its turn comes."""
    keep: bool = True
    """False: it has been forgotten meanwhile, and does not come into the cache."""


class CachedEmbedding:
    """An embedder whose texts are embedded once, off the event loop. It belongs to one event loop.

    1. A text that is in the cache, or on its way for the same tenant, is not embedded again.
    2. Tenants take turns at the threads. Nothing waits for a batch to fill: a text that finds a free thread
       is embedded at once, and those that come while the thread is busy are its next batch.
    3. A batch is of one tenant and of one role. Its queries and its passages take turns.
    4. A batch that fails is tried in parts, so that only the texts that are the reason fail.
    """

    def __init__(
        self, embedder: Embedder, *, cache_bytes: int = CACHE_BYTES, metrics: EmbeddingMetrics | None = None
    ) -> None:
        """metrics: None for some that nobody reads."""
        self.embedder = embedder
        self._metrics = metrics or EmbeddingMetrics()
        self._cache = VectorCache(cache_bytes)
        self._threads = FairThreads("embedding", THREADS, share=leave_one)
        self._on_the_way: dict[bytes, _Asked] = {}
        # No tenant without a waiting text is in it.
        self._waiting: dict[str, dict[bool, deque[_Asked]]] = {}
        self._served_last: dict[str, bool] = {}
        self._calls: Counter[str] = Counter()
        self._pumps: dict[str, asyncio.Task[None]] = {}
        self._closed = False

    async def embed(self, tenant: str, texts: Sequence[str], *, query: bool) -> Floats:
        """[len(texts), dim] of unit length, in the order of `texts`.

        Raises QuotaExceeded when too many of the tenant's calls wait, EmbedderUnavailable, and InvalidField
        for a text that the embedder refuses.
        """
        if self._closed:
            raise EmbedderUnavailable(CLOSED)
        if not texts:
            return np.empty((0, self.embedder.vectors.dim), dtype=np.float32)
        identity = self.embedder.vectors.embedder
        keys = [cache_key(tenant, identity, text, query=query) for text in texts]
        found = {key: vector for key in keys if (vector := self._cache.get(key)) is not None}
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
        hits = sum(key in found for key in keys)
        self._metrics.cache.labels("hit").inc(hits)
        self._metrics.cache.labels("miss").inc(len(keys) - hits)
        if missing:
            found |= await self._embedded(tenant, missing, query)
        return np.stack([found[key] for key in keys])

    async def run_own(self, work: Callable[[], Floats]) -> Floats:
        """Run memserve's own work on an embedding thread, in a turn of its own beside the tenants'."""
        return await self._threads.run("", work)

    def forget(self, tenant: str, texts: Sequence[str]) -> int:
        """Drop the vectors of erased texts, as passages and as queries. Returns how many there were."""
        identity = self.embedder.vectors.embedder
        keys = [cache_key(tenant, identity, text, query=query) for text in texts for query in (False, True)]
        for key in keys:
            if key in self._on_the_way:
                self._on_the_way[key].keep = False
        dropped = sum(self._cache.drop(key) for key in keys)
        self._metrics.cache_bytes.set(self._cache.bytes)
        return dropped

    def close(self) -> None:
        """Calls that wait, and later ones, raise EmbedderUnavailable."""
        self._closed = True
        self._threads.close()
        for pump in self._pumps.values():
            pump.cancel()
        for asked in list(self._on_the_way.values()):
            self._answer(asked, EmbedderUnavailable(CLOSED))
        self._waiting.clear()
        self._cache.clear()

    async def _embedded(self, tenant: str, missing: dict[bytes, str], query: bool) -> dict[bytes, Floats]:
        if self._calls[tenant] > WAITING_PER_TENANT:
            raise QuotaExceeded(
                f"embedding calls that wait for tenant {tenant}", WAITING_PER_TENANT, RETRY_AFTER_S
            )
        asked = [self._ask(tenant, key, text, query) for key, text in missing.items()]
        self._calls[tenant] += 1
        for each in asked:
            each.waiters += 1
        try:
            await asyncio.wait([each.answer for each in asked])
        finally:
            for each in asked:
                each.waiters -= 1
            self._calls[tenant] -= 1
            if not self._calls[tenant]:
                del self._calls[tenant]
        answers = {each.key: each.answer.result() for each in asked}
        for answer in answers.values():
            if isinstance(answer, Exception):
                raise answer
        return {key: answer for key, answer in answers.items() if not isinstance(answer, Exception)}

    def _ask(self, tenant: str, key: bytes, text: str, query: bool) -> _Asked:
        """The text on its way; put on its way if it is not."""
        asked = self._on_the_way.get(key)
        if asked is None:
            answer = asyncio.get_running_loop().create_future()
            asked = self._on_the_way[key] = _Asked(key, text, len(text.encode("utf-8", "replace")), answer)
            roles = self._waiting.setdefault(tenant, {True: deque(), False: deque()})
            roles[query].append(asked)
            if tenant not in self._pumps:
                self._pumps[tenant] = asyncio.create_task(self._pump(tenant))
        return asked

    async def _pump(self, tenant: str) -> None:
        """Take turns for the tenant until none of its texts waits."""
        try:
            while tenant in self._waiting:
                await self._threads.begin_next(tenant, partial(self._next_batch, tenant))
        except Exception as error:
            # No turn, or no thread: nobody else would ever answer.
            failed = error if isinstance(error, QuotaExceeded) else EmbedderUnavailable(CLOSED)
            for role in self._waiting.pop(tenant, {}).values():
                for asked in role:
                    self._answer(asked, failed)
        finally:
            del self._pumps[tenant]

    def _next_batch(self, tenant: str) -> Callable[[], None] | None:
        """The work of the tenant's turn."""
        roles = self._waiting.get(tenant)
        if roles is None:
            return None
        for role, every in roles.items():
            for asked in every:
                if not asked.waiters:
                    self._on_the_way.pop(asked.key, None)
            roles[role] = deque(asked for asked in every if asked.waiters)
        # Queries first; then the other role, where it waits.
        query = bool(roles[True]) and (not roles[False] or not self._served_last.get(tenant, False))
        texts = self.embedder.limits.fitting([asked.size for asked in roles[query]])
        batch = [roles[query].popleft() for _ in range(texts)]
        self._served_last[tenant] = query
        if not roles[True] and not roles[False]:
            del self._waiting[tenant]
            self._served_last.pop(tenant, None)
        if not batch:
            return None
        loop = asyncio.get_running_loop()

        def work() -> None:
            begun_s = time.monotonic()
            try:
                answers = _each(self.embedder, [asked.text for asked in batch], query)
            except BaseException as error:
                answers = [EmbedderUnavailable(f"{type(error).__name__} while embedding")] * len(batch)
            took_s = time.monotonic() - begun_s
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._ended, batch, answers, took_s)

        return work

    def _ended(self, batch: list[_Asked], answers: list[Floats | Exception], took_s: float) -> None:
        self._metrics.batch_texts.observe(len(batch))
        self._metrics.seconds.observe(took_s)
        for asked, answer in zip(batch, answers, strict=True):
            if not isinstance(answer, Exception) and asked.keep and not self._closed:
                self._cache.put(asked.key, answer)
            self._answer(asked, answer)
        self._metrics.cache_bytes.set(self._cache.bytes)

    def _answer(self, asked: _Asked, answer: Floats | Exception) -> None:
        self._on_the_way.pop(asked.key, None)
        if not asked.answer.done():
            asked.answer.set_result(answer)


def _each(embedder: Embedder, texts: Sequence[str], query: bool) -> list[Floats | Exception]:
    """A vector or a reason for each text, on a thread.

    A batch fails as a whole when the embedder is unavailable. Otherwise it is halved until the texts are
    found that are the reason.
    """
    answers: list[Floats | Exception] = [EmbedderUnavailable("too many texts of a batch fail; try again")] * (
        len(texts)
    )
    parts = [range(len(texts))]
    for _ in range(CALLS_PER_BATCH):
        if not parts:
            break
        part = parts.pop()
        try:
            rows = embedder.embed([texts[number] for number in part], query=query)
        except EmbedderUnavailable as error:
            for number in (number for left in (part, *parts) for number in left):
                answers[number] = error
            break
        except Exception as error:
            if len(part) == 1:
                answers[part[0]] = error
            else:
                half = len(part) // 2
                parts += [part[half:], part[:half]]
        else:
            for number, row in zip(part, rows, strict=True):
                answers[number] = row
    return answers
