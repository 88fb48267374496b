"""From one worker to two and back, on real workers, without a failed request.

An open-loop load of more than one worker can do goes on until a second has come; then little is asked for
until it has gone. It takes three minutes, with `--quick` too: a worker takes half a minute to start.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loadtests.harness.engines import prepare_environment
from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.random_model import write_model
from loadtests.harness.stack import running_stack
from loadtests.routing.overload import BATCH, LAYERS, TIMEOUT_S, WORKERS, capacity, prompt
from memserve.client import AsyncClient, CallFailed

MORE, LESS = 1.3, 0.15
"""Times what one worker can do."""
OUTPUT_TOKENS = 16
SETTLED_S = 10.0
GIVEN_UP_S = 240.0


@dataclass(slots=True)
class Phase:
    """A part of the run."""

    seconds: float = 0.0
    sent: int = 0
    failures: list[str] = field(default_factory=list)
    ended: bool = False
    """As it was to."""


async def load(client: AsyncClient, per_s: float, over: Callable[[], bool], seed: int) -> Phase:
    """Until `over`, and all are answered."""
    dice, phase, began_s = random.Random(seed), Phase(), time.monotonic()

    async def one(number: int) -> None:
        try:
            await client.generate(
                prompt(random.Random(1000 * seed + number)),
                max_tokens=OUTPUT_TOKENS,
                min_tokens=OUTPUT_TOKENS,
            )
        except CallFailed as error:
            phase.failures.append(str(error))

    async with asyncio.TaskGroup() as tasks:
        while not over() and time.monotonic() - began_s < GIVEN_UP_S:
            await asyncio.sleep(dice.expovariate(per_s))
            phase.sent += 1
            tasks.create_task(one(phase.sent))
        phase.ended = over()
        phase.seconds = time.monotonic() - began_s
    return phase


async def measure(address: str) -> tuple[Phase, Phase]:
    async with AsyncClient(address, timeout_s=TIMEOUT_S) as client:
        since_s = [time.monotonic(), 0.0]
        """Since when there have been so many workers, and how many."""

        async def watch() -> None:
            while True:
                status = await client.status(workers_only=True)
                ready = sum(worker.ready for worker in status.workers)
                if ready != since_s[1]:
                    report(f"{ready} workers")
                    since_s[:] = [time.monotonic(), ready]
                await asyncio.sleep(0.5)

        def settled(workers: int) -> bool:
            return since_s[1] == workers and time.monotonic() - since_s[0] > SETTLED_S

        watching = asyncio.create_task(watch())
        await capacity(client, 3.0, 100_000)
        per_s = await capacity(client, 6.0, 200_000)
        report(f"one worker answers {per_s:.1f} requests/s")
        more = await load(client, MORE * per_s, lambda: settled(WORKERS), 1)
        less = await load(client, LESS * per_s, lambda: settled(1), 2)
        watching.cancel()
        return more, less


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    chosen = parser("scaling", __doc__).parse_args(arguments)
    prepare_environment()
    with tempfile.TemporaryDirectory(prefix="ms-") as name:
        model = write_model(Path(name) / "model", LAYERS)
        with running_stack(
            model=str(model),
            workers=1,
            max_workers=WORKERS,
            scale_up_s=3.0,
            scale_down_s=10.0,
            max_concurrent=BATCH,
            max_wait_s=TIMEOUT_S,
            max_inflight=1000,
            max_inflight_per_tenant=1000,
        ) as stack:
            more, less = asyncio.run(measure(stack.address))
    print_table(
        ["asked for", "seconds", "sent", "failed", "settled"],
        [
            [what, f"{phase.seconds:.0f}", phase.sent, len(phase.failures), phase.ended]
            for what, phase in ((f"{MORE} of a worker", more), (f"{LESS} of a worker", less))
        ],
    )
    for failure in (more.failures + less.failures)[:5]:
        print(f"  {failure}")
    bars = [
        Bar("failed requests", len(more.failures) + len(less.failures), at_most=0),
        Bar("phases that ended with the right number of workers", more.ended + less.ended, at_least=2),
    ]
    return finish(bars, {"seconds_to_two": more.seconds, "seconds_to_one": less.seconds}, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
