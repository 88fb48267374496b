"""Two gateways in front of two workers: is the cache worth as much, and does a restart lose a request?

Real engines with the demo model, a registry, a cache, and a `milvus-lite server`. The client is gRPC's own,
as in Kubernetes in front of a headless service: round robin over the addresses of both gateways, and a call
that ends UNAVAILABLE before its first message is sent again, up to five times in all. Nothing else is sent
again.

1. Hit rate: conversations of several turns with shared system texts, through one gateway and through both,
   in alternation. The words differ in each run, so that no run finds what another one has stored.
2. A rolling restart: both gateways get SIGTERM and are started again, one after the other, while askers,
   searchers and rememberers go on. No call may fail.
3. One gateway is killed with SIGKILL. Here each asker chooses its gateway itself, one after the other in
   turn, so that it is known where a stream was: only streams of the killed gateway that had begun may end.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from loadtests.cluster.pieces import Pieces, balanced_channel, pieces
from loadtests.harness.figures import Bar, finish, parser, print_table, report
from memserve.pb.v1 import inference_pb2 as pb
from memserve.pb.v1 import inference_pb2_grpc as rpc
from memserve.pb.v1 import memory_pb2, memory_pb2_grpc

WORKERS = 2
HIT_POINTS = 2.0
TURNS, ANSWER_TOKENS, SYSTEM_WORDS = 3, 16, 120
NAMES = "amber beacon canal desert ember falcon garden harbour island jetty kiosk lantern meadow north"
TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Size:
    """How much is asked."""

    sessions: int
    rounds: int
    askers: int
    before_s: float
    """How long the load runs before, between and after the restarts."""


FULL, QUICK = Size(24, 3, 6, 3.0), Size(8, 1, 3, 1.0)


@dataclass
class Tokens:
    """Of prompts, and how many of them were cached where."""

    prompt: int = 0
    device: int = 0
    redis: int = 0
    other: int = 0

    @property
    def hit_percent(self) -> float:
        return 100 * (self.device + self.redis + self.other) / max(self.prompt, 1)


@dataclass
class Calls:
    """What became of the calls of one kind of load."""

    ended: Counter[str] = field(default_factory=Counter)
    """By status."""
    failures: list[str] = field(default_factory=list)

    def failed(self, what: str, error: grpc.aio.AioRpcError) -> None:
        self.ended[error.code().name] += 1
        self.failures.append(f"{what}: {error.code().name}: {error.details()}")

    @property
    def total(self) -> int:
        return self.ended.total()


def words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choice(NAMES.split()) for _ in range(count))


async def conversation(
    stub: rpc.InferenceServiceStub, system: str, rng: random.Random, tokens: Tokens
) -> None:
    """A few turns, each with all that was said before."""
    messages = [pb.Message(role=pb.ROLE_SYSTEM, content=system)]
    session = words(rng, 4)
    for _ in range(TURNS):
        messages.append(pb.Message(role=pb.ROLE_USER, content=words(rng, 30)))
        text = ""
        async for event in stub.Generate(asked(messages, session), timeout=TIMEOUT_S):
            text += event.text.text if event.WhichOneof("event") == "text" else ""
            if event.WhichOneof("event") == "usage":
                cached = event.usage.cached_tokens
                tokens.prompt += event.usage.prompt_tokens
                tokens.device += cached.device
                tokens.redis += cached.redis
                tokens.other += cached.host
        messages.append(pb.Message(role=pb.ROLE_ASSISTANT, content=text or "so"))


def asked(
    messages: Sequence[pb.Message], session: str, max_tokens: int = ANSWER_TOKENS
) -> pb.GenerateRequest:
    sampling = pb.Sampling(max_tokens=max_tokens, min_tokens=max_tokens)
    return pb.GenerateRequest(messages=messages, sampling=sampling, session=session)


async def hit_rate(addresses: list[str], size: Size, seed: int) -> Tokens:
    """One run of the traffic. seed: of all words; equal in shape whatever it is."""
    rng, tokens = random.Random(seed), Tokens()
    systems = [words(rng, SYSTEM_WORDS) for _ in range(4)]
    async with balanced_channel(addresses) as channel:
        stub = rpc.InferenceServiceStub(channel)
        waiting = iter(
            [(systems[number % 4], random.Random(rng.random())) for number in range(size.sessions)]
        )

        async def ask() -> None:
            for system, own in waiting:
                await conversation(stub, system, own, tokens)

        await asyncio.gather(*(ask() for _ in range(size.askers)))
    return tokens


@contextlib.asynccontextmanager
async def load_on(addresses: list[str], size: Size, calls: Calls) -> AsyncIterator[None]:
    """Askers, a searcher and a rememberer that go on while inside, over one balanced channel."""
    stopping = asyncio.Event()
    async with balanced_channel(addresses) as channel:
        generate = rpc.InferenceServiceStub(channel)
        memories = memory_pb2_grpc.MemoryServiceStub(channel)
        numbers = itertools.count()

        async def answer() -> None:
            request = asked([pb.Message(role=pb.ROLE_USER, content=f"hello {next(numbers)}")], "")
            async for _ in generate.Generate(request, timeout=TIMEOUT_S):
                pass

        async def remember() -> None:
            text = f"The code of station {next(numbers)} is 4071."
            await memories.Remember(
                memory_pb2.RememberRequest(namespace="restarts", text=text), timeout=TIMEOUT_S
            )

        async def search() -> None:
            await memories.Search(
                memory_pb2.SearchRequest(namespaces=["restarts"], query="station", limit=3), timeout=TIMEOUT_S
            )

        async def go_on(what: str, call: Callable[[], Awaitable[None]]) -> None:
            while not stopping.is_set():
                try:
                    await call()
                    calls.ended["OK"] += 1
                except grpc.aio.AioRpcError as error:
                    calls.failed(what, error)
                    await asyncio.sleep(0.05)
                if what != "Generate":
                    await asyncio.sleep(0.1)

        await remember()
        tasks = [asyncio.create_task(go_on("Generate", answer)) for _ in range(size.askers)]
        tasks += [asyncio.create_task(go_on(*each)) for each in (("Remember", remember), ("Search", search))]
        await asyncio.sleep(size.before_s)
        yield
        await asyncio.sleep(size.before_s)
        stopping.set()
        await asyncio.gather(*tasks)


@dataclass(frozen=True, slots=True)
class Restart:
    """Of one gateway, by SIGTERM."""

    gateway: str
    status: int
    """The exit status."""
    ended_s: float
    """From the signal to the process's end."""
    ready_s: float
    """From the start of the new process to its readiness."""


async def rolling_restart(running: Pieces, size: Size, calls: Calls) -> list[Restart]:
    """Each gateway in turn, as a Deployment with one more gateway at a time would: the next one waits until
    the one before is ready.
    """
    restarts = []
    async with load_on([gateway.address for gateway in running.gateways], size, calls):
        for gateway in running.gateways:
            report(f"restarting {gateway.name}")
            began_s = time.monotonic()
            status = await asyncio.to_thread(gateway.end, signal.SIGTERM)
            ended_s = time.monotonic()
            gateway.start()
            await gateway.until_up()
            ready_s = time.monotonic()
            restarts.append(Restart(gateway.name, status, ended_s - began_s, ready_s - ended_s))
            await asyncio.sleep(size.before_s)
    return restarts


@dataclass
class Killed:
    """Streams of the load in which a gateway is killed."""

    answered: int = 0
    again: int = 0
    """Sent again: nothing had come of them."""
    lost_own: int = 0
    """Streams of the killed gateway that had begun."""
    under_way: int = 0
    """Streams of the killed gateway when it was killed."""
    others: list[str] = field(default_factory=list)
    """All other failures."""


async def killed(running: Pieces, size: Size) -> Killed:
    """The first gateway is killed in the middle of the load, and not started again."""
    victim, seen = running.gateways[0], Killed()
    stopping, dead = asyncio.Event(), asyncio.Event()
    streams: Counter[str] = Counter()
    async with contextlib.AsyncExitStack() as stack:
        stubs = {}
        for gateway in running.gateways:
            channel = await stack.enter_async_context(balanced_channel([gateway.address]))
            stubs[gateway.name] = rpc.InferenceServiceStub(channel)
        turn = itertools.cycle(running.gateways)
        request = asked([pb.Message(role=pb.ROLE_USER, content="hello")], "", max_tokens=48)

        async def ask() -> None:
            while not stopping.is_set():
                gateway, has_begun = next(turn), False
                streams[gateway.name] += 1
                try:
                    async for _ in stubs[gateway.name].Generate(request, timeout=TIMEOUT_S):
                        has_begun = True
                    seen.answered += 1
                except grpc.aio.AioRpcError as error:
                    if gateway is victim and dead.is_set() and has_begun:
                        seen.lost_own += 1
                    elif gateway is victim and dead.is_set() and error.code() is grpc.StatusCode.UNAVAILABLE:
                        seen.again += 1
                    else:
                        seen.others.append(f"{gateway.name}: {error.code().name}: {error.details()}")
                finally:
                    streams[gateway.name] -= 1

        tasks = [asyncio.create_task(ask()) for _ in range(2 * size.askers)]
        await asyncio.sleep(size.before_s)
        report(f"killing {victim.name}")
        while not streams[victim.name]:
            await asyncio.sleep(0.005)
        seen.under_way = streams[victim.name]
        dead.set()
        await asyncio.to_thread(victim.end, signal.SIGKILL)
        await asyncio.sleep(size.before_s)
        stopping.set()
        await asyncio.gather(*tasks)
    return seen


@dataclass(frozen=True, slots=True)
class Measured:
    """Everything."""

    one: Tokens
    both: Tokens
    calls: Calls
    restarts: list[Restart]
    killed: Killed


def measure(size: Size, folder: Path) -> Measured:
    one, both, calls = Tokens(), Tokens(), Calls()
    with pieces(folder, workers=WORKERS, drain_delay_s=1.0, shutdown_grace_s=30.0) as running:
        addresses = [gateway.address for gateway in running.gateways]
        for number in range(size.rounds):
            for tokens, through in ((one, addresses[:1]), (both, addresses)):
                report(f"round {number + 1}: {len(through)} gateways")
                found = asyncio.run(hit_rate(through, size, seed=2 * number + len(through)))
                for name in ("prompt", "device", "redis", "other"):
                    setattr(tokens, name, getattr(tokens, name) + getattr(found, name))
        restarts = asyncio.run(rolling_restart(running, size, calls))
        return Measured(one, both, calls, restarts, asyncio.run(killed(running, size)))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    chosen = parser("cluster_gateways", __doc__).parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    folder = Path(tempfile.mkdtemp(prefix="ms-gw-"))
    try:
        measured = measure(QUICK if chosen.quick else FULL, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return told(measured, as_json=chosen.json)


def told(measured: Measured, *, as_json: bool) -> int:
    """Returns the exit status."""
    arms = (("one gateway", measured.one), ("two gateways", measured.both))
    print_table(
        ("traffic", "prompt tokens", "cached, %", "in the worker", "from Redis"),
        [
            [name, arm.prompt, f"{arm.hit_percent:.1f}", arm.device + arm.other, arm.redis]
            for name, arm in arms
        ],
    )
    print_table(
        ("restarted", "exit status", "ended after, s", "ready after, s"),
        [
            [each.gateway, each.status, f"{each.ended_s:.1f}", f"{each.ready_s:.1f}"]
            for each in measured.restarts
        ],
    )
    calls, lost = measured.calls, measured.killed
    for failure in (*calls.failures, *lost.others)[:20]:
        print(f"failed: {failure}")
    print_table(
        ("one killed", ""),
        [
            ["answered", lost.answered],
            ["its streams under way", lost.under_way],
            ["its streams that ended", lost.lost_own],
            ["sent again, since nothing had come", lost.again],
        ],
    )
    difference = abs(measured.one.hit_percent - measured.both.hit_percent)
    bars = [
        Bar("hit rate with one gateway, %", measured.one.hit_percent, at_least=20),
        Bar("hit rate with two gateways, points from that", difference, at_most=HIT_POINTS),
        Bar("calls during the rolling restart", calls.total, at_least=50),
        Bar("failed calls during the rolling restart", len(calls.failures), at_most=0),
        Bar("exit statuses that are not 0", sum(each.status != 0 for each in measured.restarts), at_most=0),
        Bar("killed: streams that ended, beyond its own", lost.lost_own - lost.under_way, at_most=0),
        Bar("killed: other failed streams", len(lost.others), at_most=0),
    ]
    figures: dict[str, object] = {
        "hit_percent": {name: arm.hit_percent for name, arm in arms},
        "restart_calls": calls.total,
        "drain_s": [each.ended_s for each in measured.restarts],
        "ready_s": [each.ready_s for each in measured.restarts],
        "killed": {"answered": lost.answered, "own_lost": lost.lost_own, "again": lost.again},
    }
    return finish(bars, figures, as_json)


if __name__ == "__main__":
    sys.exit(main())
