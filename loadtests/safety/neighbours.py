"""One tenant does the worst that it may, one kind of call at a time; another tenant's calls must hardly
notice.

A real memserve with API keys for two tenants. The tenant `quiet` asks, searches and remembers at a constant
modest rate, from this process: each kind of call has a clock of its own, so that a late answer makes no later
call late. The tenant `noisy` floods from a process of its own at `nice 19`: it shares the two cores with
memserve, and a client's own work is no part of what is measured. What the gateway and the workers do for
noisy is counted in full.

Every kind of flood is measured in turns with quiet alone, so that the machine's drift is in both: alone,
beside, alone, beside … The figure is quiet's 99th percentile beside the flood ÷ alone, of each of its calls,
over all turns; the bar is 3. Nothing of quiet's may be refused or fail. What noisy is refused does not
matter, as long as nothing breaks: the table counts its calls and refusals.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.stack import running_stack, variant
from memserve.client import AsyncClient, CallFailed
from memserve.domain import Sampling
from memserve.pb.v1 import inference_pb2, inference_pb2_grpc

RATIO_MAX = 3.0
QUIET_KEY, NOISY_KEY = "quiet-key-of-the-test", "noisy-key-of-the-test"
SEED = 13
# Seconds between quiet's calls of a kind.
GENERATE_EVERY_S, SEARCH_EVERY_S, REMEMBER_EVERY_S = 0.4, 0.25, 0.25
QUIET_ANSWER = Sampling(max_tokens=12, min_tokens=12)
QUIET_MEMORIES = 100
NOISY_MEMORIES, NOISY_NAMESPACES = 400, 40
TURNS = 2
TURN_S, QUICK_TURN_S = 30.0, 5.0
# What was begun before a turn is measured in neither.
SETTLE_S = 2.0
# A gate asks all its probes, also on a busy machine.
PREPARE_TIMEOUT_S = 180.0
WORDS = (
    "amber",
    "lantern",
    "harbour",
    "gate",
    "tower",
    "code",
    "opens",
    "north",
    "river",
    "bridge",
    "stone",
    "winter",
)
QUICK_KINDS = ("prompts of 3.9 MB", "search")


# Quiet


@dataclass
class Quiet:
    """Quiet's calls, by kind: seconds of those that were answered, and what became of the others."""

    client: AsyncClient
    rng: random.Random
    seconds: dict[str, list[float]] = field(
        default_factory=lambda: {"Generate": [], "Search": [], "Remember": []}
    )
    failed: list[str] = field(default_factory=list)
    _number: int = 0

    def text(self) -> str:
        self._number += 1
        return f"Note {self._number}: {' '.join(self.rng.choices(WORDS, k=20))}."

    async def generate(self) -> None:
        await self.client.generate(
            f"What is the code? {' '.join(self.rng.choices(WORDS, k=60))}", sampling=QUIET_ANSWER
        )

    async def search(self) -> None:
        await self.client.search(["notes"], " ".join(self.rng.choices(WORDS, k=6)), limit=4)

    async def remember(self) -> None:
        await self.client.remember("notes", self.text())

    async def run(self, seconds: float) -> None:
        """The constant mix for so long; waits for what is under way at the end."""
        async with asyncio.TaskGroup() as clocks:
            clocks.create_task(self._every(GENERATE_EVERY_S, "Generate", self.generate, seconds))
            clocks.create_task(self._every(SEARCH_EVERY_S, "Search", self.search, seconds))
            clocks.create_task(self._every(REMEMBER_EVERY_S, "Remember", self.remember, seconds))

    async def _every(
        self, interval_s: float, kind: str, call: Callable[[], Awaitable[None]], seconds: float
    ) -> None:
        begun_s = time.monotonic()
        async with asyncio.TaskGroup() as calls:
            for number in range(int(seconds / interval_s)):
                await asyncio.sleep(
                    max(0.0, begun_s + (number + self.rng.random()) * interval_s - time.monotonic())
                )
                calls.create_task(self._timed(kind, call))

    async def _timed(self, kind: str, call: Callable[[], Awaitable[None]]) -> None:
        begun_s = time.monotonic()
        try:
            await call()
            self.seconds[kind].append(time.monotonic() - begun_s)
        except CallFailed as error:
            self.failed.append(f"{kind}: {error}")


# Noisy: in a process of its own


class Noisy:
    """The floods, by name: each is run by so many tasks again and again. A refusal is counted, and nothing is
    waited for.
    """

    def __init__(self, address: str, folder: Path) -> None:
        self.client = AsyncClient(address, NOISY_KEY, timeout_s=30.0)
        self.address = address
        self.folder = folder
        self.rng = random.Random(SEED)
        self.outcomes: Counter[str] = Counter()
        self.number = 0
        self.floods: dict[str, tuple[int, Callable[[], Awaitable[object]]]] = {
            "prompts of 3.9 MB": (6, self.huge_prompt),
            "generate: long answers": (64, self.long_answer),
            "generate: longest prompts": (32, self.longest_prompt),
            "generate: tiny": (64, self.tiny_answer),
            "128 streams unread": (128, self.unread_stream),
            "list namespaces": (40, self.client.namespaces),
            "search": (40, self.search),
            "remember": (40, self.remember),
            "forget": (40, self.forget),
            "upload": (8, self.upload),
            "publish": (8, self.publish),
            "gate": (8, self.gate),
            "preload and unload": (8, self.preload),
            "split and roll back": (8, self.split),
            "look prefixes up": (16, self.look_up),
            "warm prefixes": (16, self.warm),
            "evict prefixes": (16, self.evict),
            "watch": (32, self.watch),
            "read the audit": (16, self.audit),
            "status": (32, self.client.status),
            "health": (32, self.health),
            "reflection": (32, self.reflection),
        }

    def words(self, count: int) -> str:
        self.number += 1
        return f"{self.number} {' '.join(self.rng.choices(WORDS, k=count))}"

    async def prepare(self) -> None:
        """What its floods need: memories in many namespaces, two versions of a module."""

        async def some(first: int) -> None:
            for number in range(first, NOISY_MEMORIES, 8):
                await self.client.remember(f"n{number % NOISY_NAMESPACES}", self.words(30))

        await asyncio.gather(*(some(first) for first in range(8)))
        async with AsyncClient(self.address, NOISY_KEY, timeout_s=PREPARE_TIMEOUT_S) as patient:
            for number in (1, 2):
                folder = variant(
                    "harbour", self.folder / f"harbour{number}", scale=1 + number / 1000, probes=True
                )
                await patient.modules.publish("harbour", folder)
            await patient.modules.promote("harbour", 1, force=True)

    async def run(self, flood: str, seconds: float) -> None:
        tasks, call = self.floods[flood]
        until_s = time.monotonic() + seconds

        async def again() -> None:
            while time.monotonic() < until_s:
                try:
                    async with asyncio.timeout_at(
                        asyncio.get_running_loop().time() + until_s - time.monotonic() + 1
                    ):
                        await call()
                    self.outcomes["OK"] += 1
                except CallFailed as error:
                    self.outcomes[error.code.name] += 1
                except grpc.aio.AioRpcError as error:
                    self.outcomes[error.code().name] += 1
                except TimeoutError:
                    self.outcomes["under way at the end"] += 1

        await asyncio.gather(*(again() for _ in range(tasks)))

    async def huge_prompt(self) -> None:
        await self.client.generate("word " * 780_000)

    async def long_answer(self) -> None:
        await self.client.generate(self.words(20), sampling=Sampling(max_tokens=2000, min_tokens=2000))

    async def longest_prompt(self) -> None:
        await self.client.generate(self.words(2500), sampling=Sampling(max_tokens=1))

    async def tiny_answer(self) -> None:
        await self.client.generate("Hello.", sampling=Sampling(max_tokens=1))

    async def unread_stream(self) -> None:
        """Asks, and does not read what comes, for as long as the flood goes."""
        async with grpc.aio.insecure_channel(
            self.address, options=[("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            request = inference_pb2.GenerateRequest(
                messages=[inference_pb2.Message(role=inference_pb2.ROLE_USER, content=self.words(10))],
                sampling=inference_pb2.Sampling(max_tokens=7000, min_tokens=7000, logprobs=True),
            )
            call = inference_pb2_grpc.InferenceServiceStub(channel).Generate(
                request, metadata=(("authorization", f"Bearer {NOISY_KEY}"),)
            )
            await call.read()
            await asyncio.sleep(60)

    async def search(self) -> None:
        await self.client.search([f"n{number}" for number in range(16)], self.words(200), limit=64)

    async def remember(self) -> None:
        await self.client.remember(f"n{self.number % NOISY_NAMESPACES}", self.words(600))

    async def forget(self) -> None:
        with contextlib.suppress(CallFailed):
            await self.client.remember("forget", "soon gone", memory_id=f"m{self.number}")
        await self.client.forget("forget", f"m{self.number}")

    async def upload(self) -> None:
        """Sends a module's files, with a digest that is wrong: all of it is written and read, for nothing."""
        self.number += 1
        folder = self.folder / f"upload{self.number % 8}"
        if not folder.exists():
            variant("harbour", folder, scale=1 + self.number / 100_000)
        await self.client.modules.publish(
            "uploaded", folder, notes=str(self.number), expected_digest="0" * 64
        )

    async def publish(self) -> None:
        self.number += 1
        folder = variant("harbour", self.folder / f"v{self.number}", scale=1 + self.number / 100_000)
        await self.client.modules.publish("published", folder)

    async def gate(self) -> None:
        await self.client.modules.gate("harbour", 1 + self.number % 2)

    async def preload(self) -> None:
        self.number += 1
        reference = f"harbour@{1 + self.number % 2}"
        await self.client.modules.preload(reference)
        await self.client.modules.unload(reference)

    async def split(self) -> None:
        await self.client.modules.split("harbour", {1: 0.9, 2: 0.1}, alias="mixed")
        await self.client.modules.rollback("harbour", alias="mixed")

    async def look_up(self) -> None:
        await self.client.activation.lookup(self.words(2500))

    async def warm(self) -> None:
        async for _ in self.client.activation.warm(self.words(2500)):
            pass

    async def evict(self) -> None:
        await self.client.activation.evict(self.words(2500))

    async def watch(self) -> None:
        async for _ in self.client.modules.watch("0-0"):
            pass

    async def audit(self) -> None:
        async for _ in self.client.modules.audit():
            pass

    async def health(self) -> None:
        async with grpc.aio.insecure_channel(self.address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            for _ in range(100):
                await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)

    async def reflection(self) -> None:
        async with grpc.aio.insecure_channel(self.address) as channel:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            request = reflection_pb2.ServerReflectionRequest(
                file_containing_symbol="memserve.v1.ModuleService"
            )
            call = stub.ServerReflectionInfo(iter([request] * 100), timeout=10)
            async for _ in call:
                pass


async def noisy_main(address: str, folder: Path) -> None:
    """Reads commands, one a line, as JSON: {"flood", "seconds"}; answers each with its outcomes, one line of
    JSON.
    """
    os.nice(19)
    noisy = Noisy(address, folder)
    await noisy.prepare()
    print(json.dumps(sorted(noisy.floods, key=list(noisy.floods).index)), flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        noisy.outcomes = Counter()
        await noisy.run(command["flood"], command["seconds"])
        print(json.dumps(noisy.outcomes), flush=True)
    await noisy.client.close()


# The comparison


@dataclass
class Figures:
    """Of one kind of flood: quiet's seconds alone and beside, by call, and noisy's calls by outcome."""

    flood: str
    alone: dict[str, list[float]]
    beside: dict[str, list[float]]
    outcomes: Counter[str]
    failed: list[str]

    def ratio(self, call: str) -> float:
        return p99(self.beside[call]) / p99(self.alone[call])


def p99(seconds: list[float]) -> float:
    """With fewer than a hundred samples this is nearly the worst of them; there is no better guess."""
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]


@contextlib.contextmanager
def noisy_process(address: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "loadtests.neighbours", "--noisy", address, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def answer_of(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    line = await asyncio.get_running_loop().run_in_executor(None, process.stdout.readline)
    if not line:
        raise RuntimeError("the noisy client has ended")
    return json.loads(line)


async def measure(
    address: str, folder: Path, chosen: Callable[[str], bool], turns: int, turn_s: float
) -> AsyncIterator[Figures]:
    """One Figures for each kind of flood."""
    async with AsyncClient(address, QUIET_KEY, timeout_s=60.0) as client:
        quiet = Quiet(client, random.Random(SEED))
        for _ in range(QUIET_MEMORIES):
            await quiet.remember()
        with noisy_process(address, folder) as noisy:
            assert noisy.stdin is not None
            floods = [flood for flood in await answer_of(noisy) if chosen(flood)]
            await quiet.run(turn_s)
            for flood in floods:
                figures = Figures(flood, {}, {}, Counter(), [])
                for turn in range(2 * turns):
                    beside = turn % 2 == 1
                    if beside:
                        noisy.stdin.write(
                            json.dumps({"flood": flood, "seconds": turn_s + 2 * SETTLE_S}) + "\n"
                        )
                        noisy.stdin.flush()
                        await asyncio.sleep(SETTLE_S)
                    quiet.seconds = {call: [] for call in quiet.seconds}
                    quiet.failed = []
                    await quiet.run(turn_s)
                    into = figures.beside if beside else figures.alone
                    for call, seconds in quiet.seconds.items():
                        into.setdefault(call, []).extend(seconds)
                    figures.failed.extend(quiet.failed)
                    if beside:
                        figures.outcomes += Counter(await answer_of(noisy))
                        await asyncio.sleep(SETTLE_S)
                report("  ".join(row(figures)))
                yield figures


def row(figures: Figures) -> list[str]:
    cells = [figures.flood]
    for call in ("Generate", "Search", "Remember"):
        alone, beside = p99(figures.alone[call]) * 1000, p99(figures.beside[call]) * 1000
        cells.append(f"{alone:.0f} → {beside:.0f} ({beside / alone:.2f})")
    ok = figures.outcomes["OK"]
    refused = figures.outcomes.total() - ok - figures.outcomes["under way at the end"]
    return [*cells, str(len(figures.failed)), str(ok), str(refused)]


async def run(arguments: argparse.Namespace) -> int:
    quick = arguments.quick
    turn_s = arguments.turn_s or (QUICK_TURN_S if quick else TURN_S)
    turns = 1 if quick else TURNS

    def chosen(flood: str) -> bool:
        if arguments.kinds:
            return any(kind in flood for kind in arguments.kinds.split(","))
        return not quick or flood in QUICK_KINDS

    with tempfile.TemporaryDirectory(prefix="memserve-neighbours-") as name:
        folder = Path(name)
        keys = folder / "keys.json"
        keys.write_text(json.dumps({QUIET_KEY: "quiet", NOISY_KEY: "noisy"}), encoding="utf-8")
        with running_stack(workers=2, api_keys_file=keys, recall_timeout_ms=2000) as stack:
            found = [figures async for figures in measure(stack.address, folder, chosen, turns, turn_s)]
    print_table(
        [
            "flood",
            "Generate p99 ms",
            "Search p99 ms",
            "Remember p99 ms",
            "quiet failed",
            "noisy OK",
            "noisy refused",
        ],
        list(map(row, found)),
    )
    bars = [
        Bar(f"{figures.flood}: {call}, p99 beside ÷ alone", figures.ratio(call), at_most=RATIO_MAX)
        for figures in found
        for call in figures.alone
    ]
    failed = [failure for figures in found for failure in figures.failed]
    for failure in failed[:10]:
        print(failure)
    bars.append(Bar("calls of quiet that were refused or failed", len(failed), at_most=0))
    samples = {
        figures.flood: {call: len(seconds) for call, seconds in figures.beside.items()} for figures in found
    }
    return finish(
        bars,
        {"samples": samples, "noisy": {figures.flood: figures.outcomes for figures in found}},
        arguments.json,
    )


def main() -> int:
    options = parser("neighbours", __doc__)
    options.add_argument(
        "--kinds", default="", help="only the floods whose names contain one of these, separated by commas"
    )
    options.add_argument("--turn-s", type=float, default=0.0, help="seconds of a turn, alone or beside")
    options.add_argument("--noisy", nargs=2, metavar=("ADDRESS", "FOLDER"), help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.noisy:
        asyncio.run(noisy_main(arguments.noisy[0], Path(arguments.noisy[1])))
        return 0
    return asyncio.run(run(arguments))


if __name__ == "__main__":
    sys.exit(main())
