"""Writes a second and search latency with the journal, and as memserve 0.1.0 did without one: look and put in
Milvus Lite alone.

One process, one event loop, one Milvus Lite for each way, the registry's redis-server with `appendfsync
always` for the journal. Eight callers remember texts of their own while one searches; then the same the other
way, again and again in turn. What counts is the median of the rounds' ratios: the machine drifts, and equal
rounds lie beside each other. The embedding is computed in both ways.

0.1.0's way is made of today's calls: `get` and `put` of the same `MilvusMemories` on one thread, and a flush
after every 256 rows. It is what acknowledged a write then, and a failed flush lost it.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from memserve.domain import Memory, NewMemory, SearchQuery, WritePolicy
from memserve.embedded.redis_server import redis_executable
from memserve.memory.texts.embedding import BertEmbedder
from memserve.memory.texts.memory import VectorMemory
from memserve.memory.texts.milvus import MilvusAccess, MilvusMemories
from memserve.memory.texts.records import Record, first_history, memory_key, tenant_key
from memserve.memory.texts.store import Scope

TENANT, NAMESPACE = "acme", "notes"
CALLERS = 8
ROUNDS, QUICK_ROUNDS = 12, 3
ROUND_S, QUICK_ROUND_S = 6.0, 4.0
FLUSH_ROWS = 256
TIMEOUT_S = 60.0

Remember = Callable[[str], Awaitable[object]]
Search = Callable[[str], Awaitable[object]]


class Direct:
    """As 0.1.0 wrote."""

    def __init__(self, path: Path, embedder: BertEmbedder) -> None:
        self._embedder = embedder
        self._embedding = ThreadPoolExecutor(1)
        self._thread = ThreadPoolExecutor(1)
        self._store = MilvusMemories(str(path), MilvusAccess(), embedder.vectors, timeout_s=TIMEOUT_S)
        self._rows = 0

    async def remember(self, text: str) -> None:
        loop = asyncio.get_running_loop()
        vector = (await loop.run_in_executor(self._embedding, self._embedder.embed, [text]))[0]
        memory = Memory(text.replace(" ", "-"), NAMESPACE, text, "s", (), 0.0)
        key = memory_key(TENANT, NAMESPACE, memory.memory_id)

        def store() -> None:
            if self._store.get(key, timeout_s=TIMEOUT_S) is None:
                record = Record(key, tenant_key(TENANT), first_history(memory), vector)
                self._store.put([record], timeout_s=TIMEOUT_S)
            self._rows += 1
            if self._rows % FLUSH_ROWS == 0:
                self._store.flush(timeout_s=TIMEOUT_S)
                self._store.sync()

        await loop.run_in_executor(self._thread, store)

    async def search(self, text: str) -> None:
        loop = asyncio.get_running_loop()
        vector = (await loop.run_in_executor(self._embedding, self._embedder.embed, [text]))[0]

        def read() -> None:
            scope = Scope(tenant_key(TENANT), (NAMESPACE,))
            self._store.nearest(scope, vector, 32, timeout_s=TIMEOUT_S)
            self._store.by_words(scope, text.split(), 32, timeout_s=TIMEOUT_S)

        await loop.run_in_executor(self._thread, read)

    def close(self) -> None:
        self._thread.shutdown()
        self._embedding.shutdown()
        self._store.close(clean=False)


async def round_of(remember: Remember, search: Search, name: str, seconds: float) -> tuple[float, float]:
    """Returns writes a second and the median search in ms."""
    ends_s = time.monotonic() + seconds
    wrote = 0
    took_ms: list[float] = []

    async def write(caller: int) -> None:
        nonlocal wrote
        number = 0
        while time.monotonic() < ends_s:
            await remember(f"round {name} caller {caller} says {number}")
            number += 1
            wrote += 1

    async def read() -> None:
        while time.monotonic() < ends_s:
            began_s = time.monotonic()
            await search("caller says")
            took_ms.append((time.monotonic() - began_s) * 1000)
            await asyncio.sleep(0.02)

    began_s = time.monotonic()
    await asyncio.gather(read(), *(write(caller) for caller in range(CALLERS)))
    return wrote / (time.monotonic() - began_s), statistics.median(took_ms)


async def measure(folder: Path, rounds: int, seconds: float) -> list[tuple[float, float, float, float]]:
    """Of each round: writes a second and search ms, with the journal and without."""
    socket = folder / "redis.sock"
    options = [
        "--port",
        "0",
        "--unixsocket",
        str(socket),
        "--dir",
        str(folder),
        "--save",
        "",
        "--appendonly",
        "yes",
    ]
    server = await asyncio.create_subprocess_exec(
        redis_executable(), *options, "--appendfsync", "always", stdout=asyncio.subprocess.DEVNULL
    )
    embedder = BertEmbedder()
    while not socket.exists():
        await asyncio.sleep(0.05)
    journaled = await VectorMemory.open(str(folder / "journaled.db"), embedder, f"unix://{socket}")
    direct = Direct(folder / "direct.db", embedder)
    figures = []

    async def remember(text: str) -> None:
        new = NewMemory(NAMESPACE, text, "s", memory_id=text.replace(" ", "-"))
        await journaled.remember(TENANT, new, policy=WritePolicy(skip_relations=True))

    async def search(text: str) -> None:
        await journaled.search(TENANT, SearchQuery((NAMESPACE,), text, 8), TIMEOUT_S)

    try:
        await remember("warm")
        for number in range(rounds):
            order = [(remember, search), (direct.remember, direct.search)]
            seen = {}
            for place in (0, 1) if number % 2 else (1, 0):
                seen[place] = await round_of(*order[place], f"{number}", seconds)
            figures.append((*seen[0], *seen[1]))
            report(
                f"round {number + 1}: {seen[0][0]:.0f} writes/s journaled, {seen[1][0]:.0f} direct; "
                f"searches {seen[0][1]:.0f} and {seen[1][1]:.0f} ms"
            )
    finally:
        await journaled.close()
        direct.close()
        server.terminate()
        await server.wait()
    return figures


def main() -> int:
    options = parser("journal", __doc__).parse_args()
    rounds, seconds = (QUICK_ROUNDS, QUICK_ROUND_S) if options.quick else (ROUNDS, ROUND_S)
    with tempfile.TemporaryDirectory(prefix="journal-") as folder:
        figures = asyncio.run(measure(Path(folder), rounds, seconds))
    writes = statistics.median(journaled / direct for journaled, _, direct, _ in figures)
    searches = statistics.median(journaled / direct for _, journaled, _, direct in figures)
    middle = [statistics.median(column) for column in zip(*figures, strict=True)]
    print_table(
        ("way", "writes/s", "search ms (median)"),
        [
            ("with the journal", f"{middle[0]:.0f}", f"{middle[1]:.1f}"),
            ("as 0.1.0", f"{middle[2]:.0f}", f"{middle[3]:.1f}"),
        ],
    )
    bars = [
        Bar("writes a second with the journal ÷ as 0.1.0", writes, at_least=0.5),
        Bar("search latency beside them, with the journal ÷ as 0.1.0", searches, at_most=1.5),
    ]
    return finish(bars, {"rounds": figures}, options.json)


if __name__ == "__main__":
    sys.exit(main())
