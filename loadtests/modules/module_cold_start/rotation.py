"""More adapters than slots, in shuffled rotation, by who chooses the worker."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loadtests.harness.figures import Bar, print_table, report
from loadtests.modules.module_cold_start.adapters import Adapter, prompt
from loadtests.modules.module_cold_start.places import DEVICE, HOST
from memserve.client import AsyncClient, CallFailed, Route, TextDelta
from memserve.domain import ModulePlace, Sampling

ROTATIONS = (8, 16, 32, 64)
IN_FLIGHT = 16
ANSWER_TOKENS = 16
# Of throughput. Two equal runs differ by this on a machine that does other things.
WITHIN = 0.95
ROUTING, RANDOM, PARTITIONED = "routing", "random", "partitioned"


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one policy."""

    tokens_per_s: float
    failed: int
    shares: dict[str, float]
    """Of requests, by the adapter's place on their worker when they were routed."""


@dataclass
class Residency:
    """What the gateway knows of where adapters are, asked again and again."""

    by_worker: dict[str, dict[str, ModulePlace]]

    async def follow(self, client: AsyncClient) -> None:
        while True:
            self.by_worker = {worker.worker_id: worker.modules for worker in (await client.status()).workers}
            await asyncio.sleep(0.1)


async def rotate(
    client: AsyncClient,
    adapters: Sequence[Adapter],
    worker_of: Callable[[int], str],
    seed: int,
    requests: int,
) -> Run:
    """Requests on the adapters in shuffled rotation, IN_FLIGHT at a time. worker_of: number of the adapter to
    the worker, "" for any.

    The first rotation of the adapters, at least IN_FLIGHT requests, is not timed.
    """
    draw = random.Random(seed)
    warming = max(len(adapters), IN_FLIGHT)
    order: list[int] = []
    while len(order) < warming + requests:
        order += draw.sample(range(len(adapters)), len(adapters))
    known = Residency({})
    free = asyncio.Semaphore(IN_FLIGHT)
    places: Counter[str] = Counter()

    async def ask(place: int) -> int:
        async with free:
            adapter = adapters[order[place]]
            sampling = Sampling(max_tokens=ANSWER_TOKENS, min_tokens=ANSWER_TOKENS)
            tokens = 0
            try:
                async for event in client.stream(
                    prompt(seed * 10_000 + place),
                    module=adapter.reference,
                    worker_id=worker_of(order[place]),
                    sampling=sampling,
                ):
                    if isinstance(event, Route):
                        held = known.by_worker.get(event.worker_id, {})
                        places[held.get(adapter.version.digest, ModulePlace.DISK).value] += 1
                    elif isinstance(event, TextDelta):
                        tokens += len(event.token_ids)
            except CallFailed as error:
                report(str(error))
                return 0
            return tokens

    following = asyncio.create_task(known.follow(client))
    try:
        await asyncio.gather(*(ask(place) for place in range(warming)))
        places.clear()
        started_s = time.perf_counter()
        tokens = await asyncio.gather(*(ask(place) for place in range(warming, warming + requests)))
        seconds = time.perf_counter() - started_s
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    total = sum(places.values())
    return Run(
        sum(tokens) / seconds,
        tokens.count(0),
        {place: count / total for place, count in sorted(places.items())},
    )


async def rotation_round(
    client: AsyncClient, adapters: Sequence[Adapter], counts: Sequence[int], seed: int, requests: int
) -> dict[int, dict[str, Run]]:
    """Every policy on every number of adapters; the order of the policies turns."""
    workers = sorted(worker.worker_id for worker in (await client.status()).workers)
    draw = random.Random(seed)
    policies: dict[str, Callable[[int], str]] = {
        ROUTING: lambda adapter: "",
        RANDOM: lambda adapter: draw.choice(workers),
        PARTITIONED: lambda adapter: workers[adapter % len(workers)],
    }
    names = list(policies)
    turned = names[seed % len(names) :] + names[: seed % len(names)]
    runs: dict[int, dict[str, Run]] = {}
    for place, count in enumerate(counts):
        # Equal requests, but prompts of its own for each policy: nobody has another's KV.
        runs[count] = {
            name: await rotate(
                client,
                adapters[:count],
                policies[name],
                (seed * len(counts) + place) * len(names) + names.index(name),
                requests,
            )
            for name in turned
        }
        report(
            f"{count} adapters: "
            + ", ".join(
                f"{name} {run.tokens_per_s:.0f} tokens/s {run.shares}" for name, run in runs[count].items()
            )
        )
    return runs


def show_rotations(
    rounds: Sequence[dict[int, dict[str, Run]]],
) -> tuple[list[dict[str, object]], list[Bar]]:
    rows: list[dict[str, object]] = []
    bars = [
        Bar(
            "requests that failed",
            sum(run.failed for of_round in rounds for runs in of_round.values() for run in runs.values()),
            at_most=0,
        )
    ]
    cells = []
    for count, policies in rounds[0].items():
        for name in policies:
            runs = [of_round[count][name] for of_round in rounds]
            speed = statistics.median(run.tokens_per_s for run in runs)
            of_eight = statistics.median(
                of_round[count][name].tokens_per_s / of_round[ROTATIONS[0]][name].tokens_per_s
                for of_round in rounds
            )
            routing_of_it = statistics.median(
                of_round[count][ROUTING].tokens_per_s / of_round[count][name].tokens_per_s
                for of_round in rounds
            )
            shares = [
                statistics.mean(run.shares.get(place.value, 0.0) for run in runs)
                for place in (ModulePlace.DEVICE, ModulePlace.HOST)
            ]
            rows.append(
                {
                    "adapters": count,
                    "policy": name,
                    "tokens_per_s": speed,
                    "of_eight": of_eight,
                    "routing_of_it": routing_of_it,
                    "in_a_slot": shares[0],
                    "in_host_memory": shares[1],
                }
            )
            cells.append(
                (
                    f"{count} {name}",
                    f"{speed:.0f}",
                    f"{of_eight:.2f}",
                    f"{routing_of_it:.3f}",
                    *(f"{share:.0%}" for share in shares),
                )
            )
            if name != ROUTING:
                bars.append(Bar(f"{count} adapters: routing ÷ {name}", routing_of_it, at_least=WITHIN))
    print_table(("adapters, worker by", "tokens/s", "÷ of 8", "routing ÷ it", DEVICE, HOST), cells)
    return rows, bars
