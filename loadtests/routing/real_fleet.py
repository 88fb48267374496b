"""Two real workers behind one gateway, behind two, and one of them killed.

The same load, near what the workers can do, with prompts that share their beginnings: through one gateway and
through two, in turns, for goodput and hit rate; then the engine of one worker is killed. Shown is what became
of the requests, and how long it took until requests were served in time again.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from loadtests.harness.engines import prepare_environment
from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.random_model import write_model
from loadtests.harness.second_gateway import second_gateway
from loadtests.harness.stack import running_stack
from loadtests.harness.up import is_engine
from loadtests.routing.overload import BATCH, LAYERS, OUTPUT_TOKENS, TIMEOUT_S, WORKERS, closed_loop
from memserve.client import AsyncClient, CallFailed, TextDelta, Usage
from memserve.domain import Slo

BEGINNINGS, SHARED_WORDS, OWN_WORDS = 12, 120, 30
WISH_S = 4.0
PAUSE_S = 2.0
"""Between two loads, until what waits has gone."""
KNEE = 0.8
"""The part of what the workers can do that is sent."""


@dataclass(slots=True)
class Asked:
    """A request, and what became of it."""

    at_s: float
    in_time: bool = False
    begun: bool = False
    failed: str = ""
    """Why, if it failed."""
    was_refused: bool = False
    """With a time to come again."""
    prompt_tokens: int = 0
    cached_tokens: int = 0


def prompt(beginning: int, dice: random.Random) -> str:
    """Shares its beginning with others of the same number."""
    shared = random.Random(beginning)
    words = [shared.randrange(10_000) for _ in range(SHARED_WORDS)]
    return " ".join(map(str, [*words, *(dice.randrange(10_000) for _ in range(OWN_WORDS))]))


async def ask(client: AsyncClient, asked: Asked, text: str, wish_s: float | None = WISH_S) -> None:
    began_s = time.monotonic()
    slo = Slo(wish_s * 1000, refuse_late=True) if wish_s else None
    try:
        stream = client.stream(text, max_tokens=OUTPUT_TOKENS, min_tokens=OUTPUT_TOKENS, slo=slo)
        async with contextlib.aclosing(stream) as events:
            async for event in events:
                if isinstance(event, TextDelta) and not asked.begun:
                    asked.begun = True
                    asked.in_time = time.monotonic() - began_s <= WISH_S
                if isinstance(event, Usage):
                    asked.prompt_tokens, cached = event.prompt_tokens, event.cached
                    asked.cached_tokens = cached.device + cached.host + cached.redis
    except CallFailed as error:
        asked.in_time = False
        asked.failed = f"{error.code.name}: {error.detail}"
        asked.was_refused = error.retry_after_s is not None


async def capacity(client: AsyncClient, seconds: float, seed: int) -> float:
    """What the workers answer in a second of prompts that share their beginnings."""

    async def answered(dice: random.Random) -> bool:
        asked = Asked(0.0)
        await ask(client, asked, prompt(seed + dice.randrange(BEGINNINGS), dice), None)
        return asked.begun

    return await closed_loop(answered, seconds, seed)


async def load(clients: Sequence[AsyncClient], per_s: float, seconds: float, first: int) -> list[Asked]:
    """Open-loop, each request through one of the gateways. first: the first number of the beginnings."""
    dice = random.Random(first)
    began_s, at_s = time.monotonic(), 0.0
    found: list[Asked] = []
    async with asyncio.TaskGroup() as tasks:
        while (at_s := at_s + dice.expovariate(per_s)) < seconds:
            await asyncio.sleep(max(began_s + at_s - time.monotonic(), 0.0))
            asked = Asked(at_s)
            found.append(asked)
            text = prompt(first + dice.randrange(BEGINNINGS), dice)
            tasks.create_task(ask(clients[len(found) % len(clients)], asked, text))
    return found


def goodput(asked: Sequence[Asked]) -> float:
    return sum(each.in_time for each in asked) / len(asked)


def hit_rate(asked: Sequence[Asked]) -> float:
    return sum(each.cached_tokens for each in asked) / max(sum(each.prompt_tokens for each in asked), 1)


def kill_an_engine() -> None:
    engines = [each for each in psutil.Process().children(recursive=True) if is_engine(each)]
    report(f"killing the engine {engines[0].pid}")
    engines[0].kill()


@dataclass(frozen=True, slots=True)
class Measured:
    """A whole run."""

    per_s: float
    one: list[Asked]
    two: list[Asked]
    beside_death: list[Asked]
    died_s: float
    """Since that load began."""


async def measure(first: str, second: str, seconds: float, turns: int) -> Measured:
    async with (
        AsyncClient(first, timeout_s=TIMEOUT_S) as one,
        AsyncClient(second, timeout_s=TIMEOUT_S) as two,
    ):
        await capacity(one, 3.0, 2_000_000)
        per_s = await capacity(one, min(seconds, 15.0), 3_000_000)
        report(f"{per_s:.1f} requests/s")
        found: dict[int, list[Asked]] = {1: [], 2: []}
        for turn in range(turns):
            for gateways in (1, 2) if turn % 2 == 0 else (2, 1):
                number = 10_000 * (2 * turn + gateways)
                asked = await load([one, two][:gateways], KNEE * per_s, seconds, number)
                report(f"through {gateways}: {100 * goodput(asked):.1f} % in time")
                found[gateways] += asked
                await asyncio.sleep(PAUSE_S)
        died_s = seconds / 3
        asyncio.get_running_loop().call_later(died_s, kill_an_engine)
        beside = await load([one, two], KNEE * per_s, seconds, 1_000_000)
        return Measured(per_s, found[1], found[2], beside, died_s)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    chosen = parser("real_fleet", __doc__).parse_args(arguments)
    prepare_environment()
    with tempfile.TemporaryDirectory(prefix="ms-") as name:
        model = write_model(Path(name) / "model", LAYERS)
        with (
            running_stack(
                model=str(model), workers=WORKERS, max_concurrent=BATCH, salt_key=secrets.token_hex(32)
            ) as stack,
            second_gateway(stack.settings, Path(name) / "second") as second,
        ):
            seconds, turns = (12.0, 2) if chosen.quick else (45.0, 3)
            run = asyncio.run(measure(stack.address, second.address, seconds, turns))
    print_table(
        ["requests through", "sent", "in time %", "tokens cached %"],
        [
            [name, len(asked), f"{100 * goodput(asked):.1f}", f"{100 * hit_rate(asked):.1f}"]
            for name, asked in (("one gateway", run.one), ("two", run.two))
        ],
    )
    after = [each for each in run.beside_death if each.at_s >= run.died_s]
    again_s = min((each.at_s for each in after if each.in_time), default=float("inf")) - run.died_s
    begun = [each for each in run.beside_death if each.failed and each.begun]
    lost = [each for each in run.beside_death if each.failed and not each.begun and not each.was_refused]
    print(
        f"a worker killed: {len(begun)} answers lost that had begun, {len(lost)} requests lost that had not; "
        f"{sum(each.was_refused for each in after)} of {len(after)} refused afterwards with a time to wait, "
        f"{100 * goodput(after):.0f} % in time"
    )
    for each in lost[:5]:
        print(f"  {each.failed}")
    bars = [
        Bar(
            "points of goodput that two gateways lose", 100 * (goodput(run.one) - goodput(run.two)), at_most=2
        ),
        Bar(
            "points of hit rate that two gateways lose",
            100 * (hit_rate(run.one) - hit_rate(run.two)),
            at_most=2,
        ),
        Bar("requests lost that had not begun", len(lost), at_most=0),
        Bar("seconds until a request is in time after the death", again_s, at_most=5),
    ]
    return finish(bars, {"requests_per_s": run.per_s, "lost_begun": len(begun)}, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
