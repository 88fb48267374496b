"""The vector memory as a gateway has it: the journal in a Redis that syncs every write, the local index, and
Milvus Lite in a child, which keeps the memories. One event loop, shared as a gateway's is."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from loadtests.harness.figures import report
from loadtests.harness.redis_server import PrivateRedis
from loadtests.texts.memory_search.corpus import (
    BATCH,
    LIMIT,
    NEW_FROM,
    TENANT,
    WRITES_PER_S,
    Corpus,
    SeededEmbedder,
    Timings,
)
from memserve.domain import NewMemory, SearchQuery
from memserve.memory.texts.journal_entries import Quotas
from memserve.memory.texts.memory import TextOptions, VectorMemory
from memserve.processes.interpreter import share_interpreter, what_is_open_kept

NAMESPACE = "n1"
TIMEOUT_S = 30.0
SETTLE_TIMEOUT_S = 600.0
BATCHES_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class WholeFigures:
    """Of one number of memories."""

    rows: int
    filled_per_s: float
    """Memories remembered a second in batches, by eight tenants at once, until they are durable."""
    alone: Timings
    writing: Timings
    writes_per_s: float
    """Acknowledged while the searches were timed."""
    batches: Timings
    """How long a batch of writes took until it was acknowledged."""

    def figures(self) -> dict[str, object]:
        return {
            "rows": self.rows, "filled_per_s": round(self.filled_per_s), "alone": self.alone.figures(),
            "writing": self.writing.figures(), "writes_per_s": round(self.writes_per_s),
            "batches": self.batches.figures(),
        }  # fmt: skip


def measure_whole(corpus: Corpus, rows: int, searches: int, budget_s: float) -> WholeFigures:
    share_interpreter()
    with (
        tempfile.TemporaryDirectory(prefix="memory-search-") as folder,
        PrivateRedis(Path(folder), "--appendonly", "yes", "--appendfsync", "always") as redis,
    ):
        return asyncio.run(_measure(Path(folder), redis.url, corpus, rows, searches, budget_s))


async def _measure(
    folder: Path, registry_url: str, corpus: Corpus, rows: int, searches: int, budget_s: float
) -> WholeFigures:
    options = TextOptions(call_timeout_s=TIMEOUT_S, quotas=Quotas(memories=1 << 30, bytes=1 << 50))
    memory = await VectorMemory.open(str(folder / "memories.db"), SeededEmbedder(), registry_url, options)
    try:
        with what_is_open_kept():
            return await _timed_all(memory, corpus, rows, searches, budget_s)
    finally:
        await memory.close()


async def _timed_all(
    memory: VectorMemory, corpus: Corpus, rows: int, searches: int, budget_s: float
) -> WholeFigures:
    began_s = time.perf_counter()
    for part in corpus.parts(rows):
        await _remember(memory, corpus.memories(part.start, len(part)))
        if part.start % 10_000 == 0:
            report(f"{part.stop:,} of {rows:,} memories after {time.perf_counter() - began_s:.0f} s")
    async with asyncio.timeout(SETTLE_TIMEOUT_S):
        await memory.settling.settle_now()
    filled_per_s = rows / (time.perf_counter() - began_s)
    queries = corpus.queries(searches, rows)

    async def search(number: int) -> object:
        query = SearchQuery((NAMESPACE,), queries[number % searches], LIMIT)
        return await memory.search(TENANT, query, TIMEOUT_S)

    for number in range(5):
        await search(number)
    alone = await _timed(search, searches, budget_s)
    ended = asyncio.Event()
    writer = asyncio.create_task(_write(memory, corpus, ended))
    began_s = time.perf_counter()
    beside = await _timed(search, 100 * searches, 2 * budget_s)
    ended.set()
    batches = await writer
    writes_per_s = len(batches) * BATCH / (time.perf_counter() - began_s)
    return WholeFigures(rows, filled_per_s, alone, beside, writes_per_s, Timings(tuple(batches)))


async def _timed(search: Callable[[int], Awaitable[object]], count: int, budget_s: float) -> Timings:
    seconds: list[float] = []
    ends_s = time.perf_counter() + budget_s
    while len(seconds) < count and (len(seconds) < 5 or time.perf_counter() < ends_s):
        began_s = time.perf_counter()
        await search(len(seconds))
        seconds.append(time.perf_counter() - began_s)
    return Timings(tuple(seconds))


async def _write(memory: VectorMemory, corpus: Corpus, ended: asyncio.Event) -> list[float]:
    """Remember WRITES_PER_S a second until it is ended, all of the tenant that searches.

    A batch does not wait for the one before, as long as BATCHES_AT_ONCE are not under way.
    Returns how long each batch took, in seconds.
    """
    took: list[float] = []

    async def write(number: int) -> None:
        began_s = time.perf_counter()
        await _remember(memory, [(TENANT, new) for _, new in corpus.memories(number, BATCH)])
        took.append(time.perf_counter() - began_s)

    due_s, number = time.perf_counter(), NEW_FROM
    under_way: set[asyncio.Task[None]] = set()
    while not ended.is_set():
        under_way.add(asyncio.create_task(write(number)))
        number += BATCH
        due_s += BATCH / WRITES_PER_S
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        done = {task for task in under_way if task.done()}
        if len(under_way) - len(done) >= BATCHES_AT_ONCE:
            done, _ = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
        under_way -= done
        await asyncio.gather(*done)
    await asyncio.gather(*under_way)
    return took


async def _remember(memory: VectorMemory, memories: list[tuple[str, NewMemory]]) -> None:
    """Raises what refused one of them."""
    by_tenant: dict[str, list[NewMemory]] = {}
    for tenant, new in memories:
        by_tenant.setdefault(tenant, []).append(new)

    async def store(tenant: str, items: list[NewMemory]) -> None:
        async for outcome in memory.remember_many(tenant, items):
            if outcome.error is not None:
                raise outcome.error

    await asyncio.gather(*(store(tenant, items) for tenant, items in by_tenant.items()))
