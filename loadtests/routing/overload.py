"""Three times what the workers can do, for a minute, against real workers.

An open-loop generator sends requests of three priorities, each of which would rather be refused than late. A
refused one waits as it is told, and comes once more. Before and after, single requests show the latency of a
system at rest. `--broken` takes out the detector of late requests in the workers: the bars must then break.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from loadtests.harness.engines import prepare_environment
from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.random_model import write_model
from loadtests.harness.stack import running_stack
from memserve.client import AsyncClient, CallFailed, TextDelta
from memserve.domain import Priority, Slo

LAYERS, WORKERS, BATCH = 6, 2, 16
TIMES = 3.0
PROMPT_WORDS, OUTPUT_TOKENS = 150, 16
TIMEOUT_S = 300.0
MIB = 1 << 20
# Its part of the requests, and the time in which its first token is wished for.
MIX = {Priority.HIGH: (0.1, 2.0), Priority.NORMAL: (0.6, 4.0), Priority.LOW: (0.3, 8.0)}
RECOVERY_S = 10.0
BREAKS = """
from memserve.policy.routing.waiting_room import WaitingRoom
WaitingRoom.refuse_late = lambda self, now_s, engine_s: self._sort(now_s) or []
WaitingRoom.margin = 0.0
"""


@dataclass(slots=True)
class Sent:
    """A request, and what became of it."""

    priority: Priority
    at_s: float
    """Since the load began."""
    ttft_s: float | None = None
    """None: it was refused or failed."""
    reason: str = ""
    retry_after_s: float | None = None
    again: Sent | None = None
    """What came of it when it waited as told, and came again."""

    @property
    def in_time(self) -> bool:
        return self.ttft_s is not None and self.ttft_s <= MIX[self.priority][1]


@dataclass(slots=True)
class Measured:
    """A whole run."""

    per_s: float
    """Requests that the workers answer in a second."""
    sent: list[Sent]
    rest_s: float
    """Median TTFT before."""
    recovered_s: float
    """From the end of the load until the latency of rest was back."""
    grown_mib: float
    """The gateway's memory."""


def prompt(dice: random.Random) -> str:
    return " ".join(f"{dice.randrange(10_000)}" for _ in range(PROMPT_WORDS // 2))


async def ask(client: AsyncClient, sent: Sent, dice: random.Random, *, wish: bool = True) -> None:
    """Ask once. The time counts from here to the first text."""
    slo = Slo(ttft_ms=MIX[sent.priority][1] * 1000, refuse_late=True) if wish else None
    began_s = time.monotonic()
    try:
        stream = client.stream(
            prompt(dice), max_tokens=OUTPUT_TOKENS, min_tokens=OUTPUT_TOKENS, slo=slo, priority=sent.priority
        )
        async with contextlib.aclosing(stream) as events:
            async for event in events:
                if isinstance(event, TextDelta) and sent.ttft_s is None:
                    sent.ttft_s = time.monotonic() - began_s
    except CallFailed as error:
        sent.ttft_s = None
        sent.reason = error.reason or error.code.name
        sent.retry_after_s = error.retry_after_s


async def closed_loop(
    answered: Callable[[random.Random], Awaitable[bool]], seconds: float, seed: int
) -> float:
    """Requests a second while all seats are taken.

    answered: asks once. seed: another one asks for other prompts, which nothing has cached.
    """
    done, until_s = 0, time.monotonic() + seconds

    async def one(number: int) -> None:
        nonlocal done
        dice = random.Random(seed + number)
        while time.monotonic() < until_s:
            was_answered = await answered(dice)
            done += was_answered

    await asyncio.gather(*(one(number) for number in range(BATCH * WORKERS)))
    return done / seconds


async def capacity(client: AsyncClient, seconds: float, seed: int) -> float:
    """What the workers answer in a second of prompts that share nothing."""

    async def answered(dice: random.Random) -> bool:
        sent = Sent(Priority.NORMAL, 0.0)
        await ask(client, sent, dice, wish=False)
        return sent.ttft_s is not None

    return await closed_loop(answered, seconds, seed)


async def rest(client: AsyncClient, count: int) -> list[float]:
    """TTFTs of single requests, one after the other."""
    times = []
    for number in range(count):
        sent = Sent(Priority.NORMAL, 0.0)
        await ask(client, sent, random.Random(1_000_000 + number), wish=False)
        times.append(sent.ttft_s or TIMEOUT_S)
    return times


async def load(client: AsyncClient, per_s: float, seconds: float, longest_s: float) -> list[Sent]:
    """Requests come at random times, whatever becomes of those before. A refused one comes once more.

    longest_s: one that is told to wait longer is given up.
    """
    dice = random.Random(7)
    began_s = time.monotonic()
    tasks: list[asyncio.Task[None]] = []
    found: list[Sent] = []

    async def one(sent: Sent, seed: int) -> None:
        await ask(client, sent, random.Random(10_000 + seed))
        if sent.retry_after_s is not None and sent.retry_after_s <= longest_s:
            await asyncio.sleep(sent.retry_after_s)
            sent.again = Sent(sent.priority, time.monotonic() - began_s)
            await ask(client, sent.again, random.Random(10_000 + seed))

    at_s = 0.0
    while at_s < seconds:
        at_s += dice.expovariate(per_s)
        await asyncio.sleep(max(began_s + at_s - time.monotonic(), 0.0))
        priority = dice.choices(list(MIX), [part for part, _ in MIX.values()])[0]
        sent = Sent(priority, time.monotonic() - began_s)
        found.append(sent)
        tasks.append(asyncio.create_task(one(sent, len(found))))
        if len(found) % 100 == 0:
            report(f"{len(found)} requests sent, {sum(each.done() for each in tasks)} ended")
    await asyncio.gather(*tasks)
    return found


async def measure(address: str, gateway: psutil.Process, seconds: float) -> Measured:
    async with AsyncClient(address, timeout_s=TIMEOUT_S) as client:
        await capacity(client, 3.0, 100_000)  # the first requests of an engine are slow
        per_s = await capacity(client, min(seconds, 15.0), 200_000)
        await asyncio.sleep(1.0)
        before = await rest(client, 20)
        report(
            f"{per_s:.1f} requests/s; at rest {1000 * statistics.median(before):.0f} ms to the first token"
        )
        began_bytes = gateway.memory_info().rss
        most = [began_bytes]

        async def watch() -> None:
            while True:
                most.append(gateway.memory_info().rss)
                await asyncio.sleep(0.5)

        watching = asyncio.create_task(watch())
        sent = await load(client, TIMES * per_s, seconds, 3 * seconds)
        watching.cancel()
        ended_s = time.monotonic()
        recovered_s = float("inf")
        while time.monotonic() < ended_s + 3 * RECOVERY_S:
            now_s = time.monotonic()
            if statistics.median(await rest(client, 5)) <= 1.5 * statistics.median(before):
                recovered_s = now_s - ended_s
                break
        grown = (max(most) - began_bytes) / MIB
        return Measured(per_s, sent, statistics.median(before), recovered_s, grown)


@contextlib.contextmanager
def broken_workers(folder: Path, *, broken: bool) -> Iterator[None]:
    """Python imports `sitecustomize` at the start of every process, so of the workers' too."""
    before = os.environ.get("PYTHONPATH")
    if broken:
        (folder / "sitecustomize.py").write_text(BREAKS, encoding="utf-8")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *([before] if before else [])])
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("PYTHONPATH", None)
        else:
            os.environ["PYTHONPATH"] = before


def gateway_process() -> psutil.Process:
    """The gateway is a thread's loop in this process, or a child of it."""
    children = psutil.Process().children(recursive=True)
    named = [each for each in children if "gateway" in " ".join(each.cmdline())]
    return named[0] if named else psutil.Process()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    options = parser("overload", __doc__)
    options.add_argument("--broken", action="store_true", help="without the detector of late requests")
    chosen = options.parse_args(arguments)
    prepare_environment()
    with tempfile.TemporaryDirectory(prefix="ms-") as name:
        folder = Path(name)
        model = write_model(folder / "model", LAYERS)
        with (
            broken_workers(folder, broken=chosen.broken),
            running_stack(model=str(model), workers=WORKERS, max_concurrent=BATCH) as stack,
        ):
            run = asyncio.run(measure(stack.address, gateway_process(), 12.0 if chosen.quick else 60.0))
    return told(run, chosen.json)


def told(run: Measured, as_json: bool) -> int:
    rows, attained = [], {}
    for priority, (_, wish_s) in MIX.items():
        sent = [each for each in run.sent if each.priority is priority]
        answered = sorted(each.ttft_s for each in sent if each.ttft_s is not None)
        again = [each.again for each in sent if each.again is not None]
        attained[priority] = sum(each.in_time for each in sent) / max(len(sent), 1)
        rows.append(
            [
                f"{priority}, {wish_s:g} s",
                len(sent),
                f"{100 * attained[priority]:.1f}",
                f"{1000 * statistics.median(answered):.0f}" if answered else "-",
                sum(each.ttft_s is None for each in sent),
                f"{100 * sum(each.in_time for each in again) / len(again):.1f}" if again else "-",
            ]
        )
    print_table(
        ["priority", "sent", "in time %", "TTFT p50 ms", "refused", "in time when sent again %"], rows
    )
    refused = [each for each in run.sent if each.ttft_s is None]
    again = [each.again for each in refused if each.again is not None]
    reasons = Counter(each.reason for each in refused)
    print(f"refused, by reason: {dict(reasons)}")
    print(
        f"the engines answer {run.per_s:.1f} requests/s; "
        f"at rest {1000 * run.rest_s:.0f} ms to the first token"
    )
    print(f"told to wait longer than the test waits: {sum(each.again is None for each in refused)}")
    kept = sum(each.in_time for each in again) / len(again) if again else 1.0
    late = sum(each.ttft_s is not None and not each.in_time for each in run.sent)
    bars = [
        Bar("in time, of the highest priority", attained[Priority.HIGH], at_least=0.95),
        Bar(
            "refused without a reason or a time to wait",
            sum(each.retry_after_s is None for each in refused),
            at_most=0,
        ),
        Bar("in time after waiting as told", kept, at_least=0.9),
        Bar("in time, of the lowest priority", attained[Priority.LOW], at_least=0.02),
        Bar("late answers, of all requests", late / len(run.sent), at_most=0.03),
        Bar("growth of the gateway's memory, MiB", run.grown_mib, at_most=200),
        Bar("seconds until the latency of rest is back", run.recovered_s, at_most=RECOVERY_S),
    ]
    figures: dict[str, object] = {
        "requests_per_s": run.per_s, "rest_ttft_s": run.rest_s, "reasons": dict(reasons),
        "attained": {str(priority): part for priority, part in attained.items()},
    }  # fmt: skip
    return finish(bars, figures, as_json)


if __name__ == "__main__":
    sys.exit(main())
