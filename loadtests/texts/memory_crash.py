"""Batches of memories through kill -9: nothing acknowledged is lost, and nothing is stored twice.

A writer in a process of its own remembers batches, updates every tenth memory and forgets every eleventh, and
says of each what is acknowledged. At seeded points, 30 of them, the writer is killed, at every third point
together with the registry. Then the store is opened again. Each acknowledged memory of the point must be
there in the state that was acknowledged, or in the next one, whose answer the kill may have cut off; lists
and counts must have each id once. After the last point all memories of all points are read, the store is
closed, and everything is read once more from Milvus Lite alone: the journal is empty, and the local index is
removed and built again. Nothing needs a model engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.redis_server import RedisServer
from memserve.domain import MemoryState, NewMemory, WritePolicy
from memserve.errors import MemoryNotFound, NamespaceNotFound
from memserve.memory.texts.due import FlushPolicy
from memserve.memory.texts.embedding import BertEmbedder
from memserve.memory.texts.erasing import ALL_STATES
from memserve.memory.texts.memory import TextOptions, VectorMemory
from memserve.memory.texts.requests import ListQuery, MemoryChanges
from memserve.memory.texts.store import ListOrder

SEED = 19
POINTS, QUICK_POINTS = 30, 5
KILL_AFTER_S = (0.02, 1.5)
"""Between the first acknowledged memory and the kill."""
TENANT = "acme"
PLAIN = WritePolicy(skip_relations=True)
STATES = ("remembered", "updated", "forgotten")
OPTIONS = TextOptions(flush=FlushPolicy(rows=100, quiet_s=0.3))
START_TIMEOUT_S = 60.0


@dataclass
class Told:
    """What a writer has said: of each id its last acknowledged state."""

    states: dict[str, str] = field(default_factory=dict)
    lines: int = 0


@dataclass
class Figures:
    acknowledged: int = 0
    lost: int = 0
    doubled: int = 0
    miscounted: int = 0
    replayed: int = 0
    restart_s: list[float] = field(default_factory=list)


async def write(uri: str, redis_url: str, namespace: str) -> None:
    """The writer. Says `<state> <id>` of what is acknowledged, until it is killed."""
    memory = await VectorMemory.open(uri, BertEmbedder(), redis_url, OPTIONS)
    print("open", flush=True)
    number = 0
    while True:
        items = [
            NewMemory(namespace, f"Crate {n} stands in hall {n % 7}.", memory_id=f"m{n}")
            for n in range(number, number + 64)
        ]
        async for told in memory.remember_many(TENANT, items):
            if told.remembered is not None and told.remembered.memory is not None:
                print("remembered", told.remembered.memory.memory_id, flush=True)
        for n in range(number, number + 64, 10):
            content = NewMemory(namespace, f"Crate {n} has been moved.", memory_id=f"m{n}")
            await memory.update(TENANT, MemoryChanges(content, frozenset({"text"})), "", PLAIN)
            print("updated", f"m{n}", flush=True)
        for n in range(number, number + 64, 11):
            if await memory.forget(TENANT, namespace, f"m{n}"):
                print("forgotten", f"m{n}", flush=True)
        number += 64


def crash(uri: str, redis: RedisServer, namespace: str, *, after_s: float, with_registry: bool) -> Told:
    """Run a writer, and kill it so long after its first acknowledged memory."""
    command = [sys.executable, "-m", "loadtests.memory_crash", "--writer", uri, redis.url, namespace]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    told, begun = Told(), threading.Event()

    def listen() -> None:
        assert writer.stdout is not None
        for line in writer.stdout:
            state, _, name = line.strip().partition(" ")
            if state in STATES and line.endswith("\n"):
                told.states[name] = state
                told.lines += 1
                begun.set()

    listener = threading.Thread(target=listen)
    listener.start()
    try:
        if not begun.wait(START_TIMEOUT_S):
            raise TimeoutError("the writer remembered nothing")
        time.sleep(after_s)
    finally:
        writer.kill()
        if with_registry:
            redis.start_durably()  # kills it first
        writer.wait()
        listener.join()
        if writer.stdout is not None:
            writer.stdout.close()
    return told


async def check(memory: VectorMemory, namespace: str, told: Told, figures: Figures) -> None:
    """Hold the memories of one point against what was told of them."""
    for name, state in told.states.items():
        try:
            history = await memory.history(TENANT, namespace, name)
        except (MemoryNotFound, NamespaceNotFound):
            figures.lost += 1
            continue
        actions = [version.action.value for version in history.versions]
        expected = {"remembered": 1, "updated": 2, "forgotten": 2}[state]
        # A memory of both kinds is updated and forgotten.
        if state == "forgotten" and int(name[1:]) % 64 % 10 == 0 and int(name[1:]) % 64 % 11 == 0:
            expected = 3
        if len(actions) < expected or (state != "remembered" and state not in actions):
            figures.lost += 1
        if len(actions) != len(set(actions)):
            figures.doubled += 1
    listed = Counter(await all_ids(memory, namespace))
    figures.doubled += sum(count - 1 for count in listed.values())
    usage = await memory.namespace_usage(TENANT, namespace)
    live = len(await all_ids(memory, namespace, (MemoryState.LIVE,)))
    figures.miscounted += (usage.records != len(listed)) + (usage.memories != live)


async def all_ids(
    memory: VectorMemory, namespace: str, states: tuple[MemoryState, ...] = ALL_STATES
) -> list[str]:
    found, token = list[str](), ""
    while True:
        page = await memory.list_memories(
            TENANT,
            ListQuery((namespace,), order=ListOrder.MEMORY_ID, limit=256, page_token=token, states=states),
        )
        found += [each.memory_id for each in page.memories]
        token = page.next_page_token
        if not token:
            return found


async def crashes(folder: Path, points: int, seed: int) -> Figures:
    draw, figures = random.Random(seed), Figures()
    uri, embedder = str(folder / "memories.db"), BertEmbedder()
    (folder / "redis").mkdir()
    redis = RedisServer(folder / "redis")
    redis.start_durably()
    everything: dict[str, Told] = {}
    try:
        for point in range(points):
            namespace = f"point-{point}"
            after_s = draw.uniform(*KILL_AFTER_S)
            told = await asyncio.to_thread(
                crash, uri, redis, namespace, after_s=after_s, with_registry=point % 3 == 2
            )
            everything[namespace] = told
            figures.acknowledged += told.lines
            begun_s = time.monotonic()
            memory = await VectorMemory.open(uri, embedder, redis.url, OPTIONS)
            figures.restart_s.append(time.monotonic() - begun_s)
            figures.replayed += memory.settling.figures.replayed
            await check(memory, namespace, told, figures)
            await memory.close()
            report(f"point {point + 1} of {points}: {told.lines} acknowledged, {figures.lost} lost")
        shutil.rmtree(folder / "memories.index")
        memory = await VectorMemory.open(uri, embedder, redis.url, OPTIONS)
        async with asyncio.timeout(START_TIMEOUT_S):
            while memory.settling.needs_mending:
                await asyncio.sleep(0.1)
        for namespace, told in everything.items():
            await check(memory, namespace, told, figures)
        await memory.close()
    finally:
        redis.stop()
    return figures


def main() -> int:
    options = parser("memory_crash", __doc__)
    options.add_argument("--writer", nargs=3, metavar=("URI", "REDIS", "NAMESPACE"), help="what is killed")
    options.add_argument("--seed", type=int, default=SEED)
    arguments = options.parse_args()
    if arguments.writer:
        with contextlib.suppress(BrokenPipeError):
            asyncio.run(write(*arguments.writer))
        return 0
    points = QUICK_POINTS if arguments.quick else POINTS
    with tempfile.TemporaryDirectory(prefix="memserve-crash-") as name:
        figures = asyncio.run(crashes(Path(name), points, arguments.seed))
    print_table(
        ("points", "acknowledged", "replayed", "lost", "twice", "miscounted", "longest restart, s"),
        [
            (
                points, figures.acknowledged, figures.replayed, figures.lost, figures.doubled,
                figures.miscounted, f"{max(figures.restart_s):.2f}",
            )
        ],
    )  # fmt: skip
    bars = [
        Bar("acknowledged and lost", figures.lost, at_most=0),
        Bar("stored twice", figures.doubled, at_most=0),
        Bar("counts that are wrong", figures.miscounted, at_most=0),
    ]
    return finish(
        bars,
        {
            "points": points,
            "acknowledged": figures.acknowledged,
            "replayed": figures.replayed,
            "restart_s": figures.restart_s,
        },
        arguments.json,
    )


if __name__ == "__main__":
    sys.exit(main())
