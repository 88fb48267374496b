"""The simulator against the real stack: the same requests, the same policies, two workers.

Some conversations of a trace, scaled down to a CPU (prompts to 1/16, answers to 1/16, time to LOADS of what
the engines could compute), are replayed open-loop against two real workers, for each policy through a gateway
of its own, and in the simulator with the costs that the workers have measured of their engines. The trace's
times are rounded to three seconds: arrivals are spread within them. Each request would rather be refused than
late. Shown are the goodput and the median TTFT of both, whether they put the policies in the same order, and
how far the gateway's own predictions were off.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path

from loadtests.harness.engines import prepare_environment
from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.random_model import write_model
from loadtests.harness.second_gateway import SecondGateway, second_gateway
from loadtests.harness.stack import running_stack
from loadtests.routing.goodput import PUBLISHED
from loadtests.simulator import fleet
from loadtests.simulator.jobs import Machine
from loadtests.simulator.outcomes import Outcomes
from loadtests.simulator.traces import copies
from memserve.bench.trace import BLOCK_TOKENS, Arrival, read_trace
from memserve.client import Answer, AsyncClient, CallFailed
from memserve.config import Settings
from memserve.credentials import salt_key, worker_credential
from memserve.domain import Slo
from memserve.domain.worker_calls import WorkerState
from memserve.gateway.workers.calls import GrpcCalls
from memserve.policy.routing.costs import EngineCosts
from memserve.policy.routing.policies import POLICIES
from memserve.registry.leases import Registry

SCALE, ANSWER_SCALE = 16, 16
BLOCK = BLOCK_TOKENS // SCALE
"""Tokens of a block of the trace, as it is replayed."""
LAYERS = 6
WORKERS, BATCH = 2, 16
POLICY_NAMES = ("round_robin", "session_hash", "lmetric", "least_harm")
TOGETHER = 8
"""Answers that share a step, about."""
TIMEOUT_S = 120.0
LOADS = 0.8
WISH_S = 1.5
PER_TOKEN = 3.0
"""Of what an engine takes for the prompt, so many times are added to WISH_S."""
ROUNDED_S = 3.0
SAME = 1.15
"""Median TTFTs that are less than so many times each other are in no order."""


def text_of(first: str, blocks: Sequence[int], tokens: int) -> str:
    """A prompt of about `tokens` tokens. Equal leading blocks after an equal first word give equal leading
    text."""
    words = [
        f"{block % 100:02d} {block // 100 % 100:02d} word is here now and then it was so" for block in blocks
    ]
    return " ".join([first, *words])[: tokens * 4]


def some_sessions(trace: Sequence[Arrival], requests: int, seed: int) -> list[Arrival]:
    """Whole conversations, at random, of about so many requests, within the ROUNDED_S after their times."""
    dice = random.Random(seed)
    sessions: dict[str, list[Arrival]] = {}
    for arrival in copies(trace, 1, 1.0, seed):
        sessions.setdefault(arrival.session, []).append(arrival)
    chosen: list[Arrival] = []
    for session in dice.sample(sorted(sessions), len(sessions)):
        chosen += [
            replace(arrival, at_s=arrival.at_s + ROUNDED_S * dice.random()) for arrival in sessions[session]
        ]
        if len(chosen) >= requests:
            break
    return sorted(chosen, key=lambda arrival: arrival.at_s)


@dataclass(frozen=True, slots=True)
class Replayed:
    """A request that was sent, and its answer."""

    arrival: Arrival
    prompt_tokens: int
    """As replayed; of a refused request about."""
    wish_s: float
    answer: Answer | None
    """None: it was refused."""

    @property
    def in_time(self) -> bool:
        return self.answer is not None and self.answer.usage.ttft_ms <= self.wish_s * 1000


async def reported_costs(settings: Settings) -> EngineCosts:
    """What the workers say that their engines cost lately: the mean."""
    registry = Registry(settings.redis)
    found = []
    for lease in await registry.live_workers():
        calls = GrpcCalls(lease, worker_credential(salt_key(settings)))
        async with contextlib.aclosing(calls.watch(0, 0, TIMEOUT_S)) as events:
            async for event in events:
                if isinstance(event, WorkerState) and event.engine is not None:
                    found.append(astuple(event.engine.costs))
                    break
        await calls.close()
    await registry.close()
    return EngineCosts(*(statistics.mean(values) for values in zip(*found, strict=True)))


async def replay(
    client: AsyncClient, first: str, arrivals: Sequence[Arrival], costs: EngineCosts
) -> list[Replayed]:
    """Send every request at its time, whatever became of those before. first: word of every prompt."""
    started_s = time.monotonic()

    async def one(arrival: Arrival) -> Replayed:
        await asyncio.sleep(started_s + arrival.at_s - time.monotonic())
        tokens = arrival.prompt_tokens // SCALE
        text = text_of(first, arrival.blocks, tokens)
        wish_s = WISH_S + PER_TOKEN * costs.token_s * tokens
        output_tokens = max(2, arrival.output_tokens // ANSWER_SCALE)
        try:
            answer = await client.generate(
                text,
                max_tokens=output_tokens,
                min_tokens=output_tokens,
                slo=Slo(wish_s * 1000, refuse_late=True),
            )
        except CallFailed:
            return Replayed(arrival, tokens, wish_s, None)
        return Replayed(arrival, answer.usage.prompt_tokens, wish_s, answer)

    return list(await asyncio.gather(*map(one, arrivals)))


def simulated(
    policy: str, costs: EngineCosts, overhead_s: float, replayed: Sequence[Replayed]
) -> tuple[Outcomes, float]:
    """The same requests in the simulator. Returns their ends, and the median TTFT.

    Its blocks are the trace's. So a token counts as SCALE of them, and its costs as one of SCALE.
    overhead_s: of a request, outside the engine.
    """
    scaled = replace(
        costs,
        token_s=costs.token_s / SCALE,
        context_s=costs.context_s / SCALE**2,
        kv_token_s=costs.kv_token_s / SCALE,
    )
    arrivals = [
        replace(
            each.arrival,
            prompt_tokens=min(each.prompt_tokens * SCALE, len(each.arrival.blocks) * BLOCK_TOKENS),
            output_tokens=max(2, each.arrival.output_tokens // ANSWER_SCALE),
        )
        for each in replayed
    ]
    machine = Machine(
        scaled, device_blocks=100_000, host_blocks=0, redis_blocks=100_000, fetch_tokens_per_s=1.6e6,
        sequences=BATCH,
    )  # fmt: skip
    slo = fleet.Slo(WISH_S - overhead_s, PER_TOKEN * scaled.token_s, tpot_s=1e9)
    setting = fleet.Setting(POLICIES[policy], WORKERS, view_age_s=0.1, rooms=True, machine=machine, slo=slo)
    outcomes = fleet.Fleet(setting).run(arrivals, len(arrivals))
    return outcomes, outcomes.median_ttft_s + overhead_s


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


def compare(policy: str, gateway: SecondGateway, settings: Settings, trace: Sequence[Arrival]) -> Compared:
    """Replay through the gateway, which has the policy, and simulate the same."""
    costs, overhead_s, replayed = asyncio.run(measured(policy, gateway.address, settings, trace))
    report(f"{policy}: {costs}, {1000 * overhead_s:.0f} ms outside the engine")
    answers = [each.answer for each in replayed if each.answer is not None]
    outcomes, median_s = simulated(policy, costs, overhead_s, replayed)
    errors = [
        answer.route.predicted_ttft_ms / answer.usage.ttft_ms - 1 for answer in answers[len(answers) // 5 :]
    ]
    return Compared(
        policy,
        statistics.median(answer.usage.ttft_ms / 1000 for answer in answers),
        median_s,
        sum(each.in_time for each in replayed) / len(replayed),
        outcomes.requests.goodput,
        errors,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    options = parser("simulator_check", __doc__)
    options.add_argument("--trace", type=Path, default=PUBLISHED, help="a trace in Mooncake's format")
    chosen = options.parse_args(arguments)
    prepare_environment()
    trace = some_sessions(read_trace(chosen.trace), 60 if chosen.quick else 240, 0)
    compared = []
    with tempfile.TemporaryDirectory(prefix="ms-") as name:
        folder = Path(name)
        model = write_model(folder / "model", LAYERS)
        with running_stack(
            model=str(model),
            workers=WORKERS,
            max_concurrent=BATCH,
            block_tokens=BLOCK,
            salt_key=secrets.token_hex(32),
        ) as stack:
            for policy in POLICY_NAMES[::3] if chosen.quick else POLICY_NAMES:
                with second_gateway(stack.settings, folder / policy, routing_policy=policy) as gateway:
                    compared.append(compare(policy, gateway, stack.settings, trace))
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
        SAME * one.real_s < other.real_s and one.simulated_s > SAME * other.simulated_s
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
    policy: str, address: str, settings: Settings, trace: Sequence[Arrival]
) -> tuple[EngineCosts, float, list[Replayed]]:
    """The engines' costs, a request's time outside them, and a replay at LOADS of what they could compute."""
    async with AsyncClient(address, timeout_s=TIMEOUT_S) as client:
        apart = []
        for number in range(12):  # the first requests are slow
            answer = await client.generate(text_of(policy, [10_000 + number], 64), max_tokens=4, min_tokens=4)
            apart.append((answer.usage.ttft_ms, answer.usage.prompt_tokens))
        costs = await reported_costs(settings)
        overhead_s = max(
            statistics.median(
                ttft_ms / 1000 - costs.prefill_s(0, tokens) - costs.step_s for ttft_ms, tokens in apart[4:]
            ),
            0.0,
        )
        needs_s = statistics.mean(
            costs.prefill_s(0, arrival.prompt_tokens // SCALE)
            + arrival.output_tokens / ANSWER_SCALE * (costs.answer_s + costs.step_s / TOGETHER)
            for arrival in trace
        )
        length_s = max(arrival.at_s for arrival in trace) + 1.0
        speed = LOADS * length_s * WORKERS / (needs_s * len(trace))
        faster = [replace(arrival, at_s=arrival.at_s / speed) for arrival in trace]
        replayed = await replay(client, policy, faster, costs)
        return await reported_costs(settings), overhead_s, replayed


if __name__ == "__main__":
    sys.exit(main())
