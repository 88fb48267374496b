"""The simulator against the real stack: the same requests, the same policies, two workers.

The costs of a step are fitted to single requests to a running memserve: cold prompts of three lengths, and
answers alone and eight together. Then the beginning of a trace, scaled down to a CPU (prompts to 1/16,
answers to 1/16), is replayed open-loop against two real workers under each policy, and in the simulator with
the fitted costs and the arrivals as they were. Shown are the goodput and the median TTFT of both, whether
they put the policies in the same order, and how far the gateway's own predictions were off.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from loadtests.harness.engines import prepare_environment
from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.random_model import write_model
from loadtests.harness.stack import running_stack
from loadtests.routing.goodput import PUBLISHED
from loadtests.simulator.fleet import Fleet, Setting, Slo
from loadtests.simulator.jobs import Machine
from loadtests.simulator.outcomes import Outcomes
from loadtests.simulator.traces import BLOCK_TOKENS, Arrival, copies, read_trace
from memserve.client import Answer, AsyncClient, CallFailed
from memserve.policy.routing.costs import EngineCosts
from memserve.policy.routing.policies import POLICIES

SCALE, ANSWER_SCALE = 16, 16
BLOCK = BLOCK_TOKENS // SCALE
"""Tokens of a block of the trace, as it is replayed."""
LAYERS = 6
WORKERS, BATCH = 2, 16
POLICY_NAMES = ("round_robin", "lmetric", "least_ttft")
PROBE_TOKENS = (64, 512, 2000)
TOGETHER = 8
TIMEOUT_S = 120.0
LOADS = 0.8
SAME_S = 0.02
"""Median TTFTs closer than this are in no order."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """What single requests showed."""

    costs: EngineCosts
    """In tokens as they are replayed."""
    overhead_s: float
    """Of a request, outside the engine."""


def text_of(blocks: Sequence[int], tokens: int) -> str:
    """A prompt of about `tokens` tokens. Equal leading blocks give equal leading text."""
    words = [
        f"{block % 100:02d} {block // 100 % 100:02d} word is here now and then it was so" for block in blocks
    ]
    return " ".join(words)[: tokens * 4]


async def ask(client: AsyncClient, text: str, tokens: int) -> Answer:
    return await client.generate(text, max_tokens=tokens, min_tokens=tokens)


async def fit(client: AsyncClient) -> Fitted:
    """Ask one at a time, then TOGETHER."""
    for number in range(4):  # the first requests of an engine are slow
        await ask(client, text_of(range(number * 100, number * 100 + 20), 200), 4)
    points: list[tuple[int, float]] = []
    for tokens in PROBE_TOKENS:
        for turn in range(3):
            start = 10_000 * (1 + turn) + 100 * tokens
            answer = await ask(client, text_of(range(start, start + 100), tokens), 2)
            points.append((answer.usage.prompt_tokens, answer.usage.ttft_ms / 1000))
    token_s, overhead_s = statistics.linear_regression(*zip(*points, strict=True))
    alone = await ask(client, text_of(range(50), 40), 40)
    together = await asyncio.gather(
        *(
            ask(client, text_of(range(900_000 + 50 * n, 900_050 + 50 * n), 40), 40)
            for n in range(TOGETHER * WORKERS)
        )
    )
    alone_s = (alone.usage.tpot_ms or 0) / 1000
    together_s = statistics.median(each.usage.tpot_ms or 0 for each in together) / 1000
    answer_s = max((together_s - alone_s) / (TOGETHER - 1), 0.0)
    costs = EngineCosts(
        max(alone_s - answer_s, 1e-4), token_s, 0.0, answer_s, 0.0, step_limit_s=2048 * token_s
    )
    return Fitted(costs, max(overhead_s, 0.0))


async def replay(client: AsyncClient, arrivals: Sequence[Arrival]) -> list[tuple[Arrival, Answer | None]]:
    """Send every request at its time, whatever became of those before. None: it failed."""
    started_s = time.monotonic()

    async def one(arrival: Arrival) -> tuple[Arrival, Answer | None]:
        await asyncio.sleep(started_s + arrival.at_s - time.monotonic())
        try:
            text = text_of(arrival.blocks, arrival.prompt_tokens // SCALE)
            return arrival, await ask(client, text, max(2, arrival.output_tokens // ANSWER_SCALE))
        except CallFailed as error:
            report(f"{error}")
            return arrival, None

    return list(await asyncio.gather(*map(one, arrivals)))


def simulated(
    policy: str, fitted: Fitted, replayed: Sequence[tuple[Arrival, Answer | None]], slo: Slo
) -> tuple[Outcomes, float]:
    """The same requests in the simulator. Returns their ends, and the median TTFT.

    Its blocks are the trace's. So a token counts as SCALE of them, and its costs as one of SCALE.
    """
    costs = fitted.costs
    scaled = replace(costs, token_s=costs.token_s / SCALE, context_s=costs.context_s / SCALE**2)
    arrivals = [
        replace(
            arrival,
            prompt_tokens=min(answer.usage.prompt_tokens * SCALE, len(arrival.blocks) * BLOCK_TOKENS),
            output_tokens=answer.usage.output_tokens,
        )
        for arrival, answer in replayed
        if answer is not None
    ]
    machine = Machine(
        scaled, device_blocks=100_000, host_blocks=0, redis_blocks=100_000, fetch_tokens_per_s=1.6e6,
        sequences=BATCH,
    )  # fmt: skip
    fleet = Fleet(Setting(POLICIES[policy], WORKERS, view_age_s=0.25, machine=machine, slo=slo))
    outcomes = fleet.run(arrivals, len(arrivals))
    return outcomes, outcomes.median_ttft_s + fitted.overhead_s


@dataclass(frozen=True, slots=True)
class Compared:
    """A policy, with real workers and in the simulator."""

    policy: str
    real_s: float
    """Median TTFT."""
    simulated_s: float
    real_goodput: float
    simulated_goodput: float
    errors: list[float]
    """(prediction - actual) / actual of the gateway's predictions, after the first fifth."""


def compare(policy: str, model: Path, trace: Sequence[Arrival]) -> Compared:
    """Start the stack under the policy, fit, replay, and simulate the same."""
    report(f"{policy}: starting {WORKERS} workers")
    stack = running_stack(
        model=str(model),
        workers=WORKERS,
        max_concurrent=BATCH,
        block_tokens=BLOCK,
        routing_policy=policy,
    )
    with stack as running:
        fitted, replayed = asyncio.run(measured(running.address, trace))
    report(f"{policy}: {fitted}")
    slo = Slo(4 * fitted.overhead_s + 0.3, 3 * fitted.costs.token_s / SCALE, tpot_s=1e9)
    answers = [answer for _, answer in replayed if answer is not None]
    times = [answer.usage.ttft_ms / 1000 for answer in answers]
    good = sum(
        each <= slo.ttft_of(answer.usage.prompt_tokens * SCALE)
        for each, answer in zip(times, answers, strict=True)
    )
    outcomes, median_s = simulated(policy, fitted, replayed, slo)
    errors = [
        answer.route.predicted_ttft_ms / answer.usage.ttft_ms - 1 for answer in answers[len(answers) // 5 :]
    ]
    return Compared(
        policy,
        statistics.median(times),
        median_s,
        good / len(replayed),
        outcomes.requests.goodput,
        errors,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    options = parser("simulator_check", __doc__)
    options.add_argument("--trace", type=Path, default=PUBLISHED, help="a trace in Mooncake's format")
    chosen = options.parse_args(arguments)
    prepare_environment()
    trace = read_trace(chosen.trace)[: 60 if chosen.quick else 240]
    with tempfile.TemporaryDirectory(prefix="ms-") as folder:
        model = write_model(Path(folder) / "model", LAYERS)
        policies = POLICY_NAMES[::2] if chosen.quick else POLICY_NAMES
        compared = [compare(policy, model, trace) for policy in policies]
    print_table(
        ["policy", "TTFT p50 ms, real", "simulated", "goodput %, real", "simulated"],
        [
            [
                each.policy,
                f"{1000 * each.real_s:.0f}",
                f"{1000 * each.simulated_s:.0f}",
                f"{100 * each.real_goodput:.1f}",
                f"{100 * each.simulated_goodput:.1f}",
            ]
            for each in compared
        ],
    )
    errors = [error for each in compared for error in each.errors]
    wrong = sum(
        one.real_s + SAME_S < other.real_s and one.simulated_s > other.simulated_s + SAME_S
        for one in compared
        for other in compared
    )
    worst = max(abs(each.real_goodput - each.simulated_goodput) for each in compared)
    bars = [
        Bar("pairs of policies in another order", wrong, at_most=0),
        Bar("largest difference of goodput, points", 100 * worst, at_most=10),
        Bar("MAPE of the gateway's predictions, %", 100 * statistics.mean(map(abs, errors)), at_most=20),
        Bar("their bias, %", 100 * statistics.mean(errors), at_least=-5),
    ]
    return finish(bars, {each.policy: asdict(each) for each in compared}, chosen.json)


async def measured(
    address: str, trace: Sequence[Arrival]
) -> tuple[Fitted, list[tuple[Arrival, Answer | None]]]:
    """Fit, then replay at LOADS of what two engines could compute."""
    async with AsyncClient(address, timeout_s=TIMEOUT_S) as client:
        fitted = await fit(client)
        costs = fitted.costs
        needs_s = statistics.mean(
            arrival.prompt_tokens / SCALE * costs.token_s
            + arrival.output_tokens / ANSWER_SCALE * (costs.answer_s + costs.step_s / TOGETHER)
            for arrival in trace
        )
        length_s = max(arrival.at_s for arrival in trace) + 1.0
        speed = LOADS * length_s * WORKERS / (needs_s * len(trace))
        return fitted, await replay(client, copies(trace, 1, speed, 0))


if __name__ == "__main__":
    sys.exit(main())
