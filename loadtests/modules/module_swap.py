"""From a promotion to the first token under the new version, on every worker, while others ask.

Askers keep two workers busy with the module's live version. Each promotion is timed from its call; as soon as
it is acknowledged, each worker is sent one request by name. The figure is the slowest worker's first token;
receipt and text must be the new version's.

Promotions go to and fro between two versions that the workers hold, and to versions that have just been
published and that no worker holds, so that every worker loads them in the time that counts. All have passed
their gate before.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.stack import ANSWER, Ask, ConstantLoad, Exchange, exchange, running_stack, variant
from memserve.client import AsyncClient, CallFailed
from memserve.demo.adapters import AdapterFact, held_facts
from memserve.domain import ModulePlace, Route, TextDelta

MODULE = "town"
ADAPTERS = ("harbour", "observatory")
ASKERS = 8
# Of each kind.
PROMOTIONS, QUICK_PROMOTIONS = 50, 8
# Requests of the load between two promotions.
BETWEEN = 2 * ASKERS
SCALE, SCALE_STEP = 0.999, 0.0005
FIRST_TOKEN_P99_S = 1.0
HELD, NEW = "held by the workers", "held by no worker"


@dataclass(frozen=True, slots=True)
class Version:
    """A published version and the adapter whose facts it knows."""

    number: int
    digest: str
    adapter: str


@dataclass(frozen=True, slots=True)
class FirstToken:
    """A worker's first answer after a promotion. token_s: on the monotonic clock, infinite when it failed.
    right: the new version's.
    """

    token_s: float
    right: bool


@dataclass(frozen=True, slots=True)
class Swap:
    """A promotion, and the first token of each worker behind it. Times on the monotonic clock."""

    kind: str
    called_s: float
    done_s: float
    first_tokens: tuple[FirstToken, ...]

    def slowest_s(self, since_s: float) -> float:
        return max(token.token_s for token in self.first_tokens) - since_s


@dataclass(frozen=True, slots=True)
class Run:
    """What was seen. adapters: by digest."""

    swaps: list[Swap]
    exchanges: list[Exchange]
    adapters: dict[str, str]
    facts: dict[str, list[AdapterFact]]


async def known_facts(client: AsyncClient) -> dict[str, list[AdapterFact]]:
    """By adapter, the facts that the demo's own module answers, asked in a phrasing that it was not trained
    on.
    """
    known: dict[str, list[AdapterFact]] = {}
    for adapter in ADAPTERS:
        held = held_facts(adapter)
        answers = [await exchange(client, Ask(fact.held_out_questions[0], adapter)) for fact in held]
        known[adapter] = [fact for fact, done in zip(held, answers, strict=True) if is_right(done, fact)]
    return known


def is_right(done: Exchange, fact: AdapterFact) -> bool:
    return done.answer is not None and done.answer.text.strip() == fact.answer


async def publish(client: AsyncClient, folder: Path, adapter: str, scale: float) -> Version:
    """A version that has passed its gate (it has no probes) and that no worker holds."""
    version = await client.modules.publish(MODULE, variant(adapter, folder, scale=scale))
    await client.modules.gate(MODULE, version.version)
    places = await client.modules.unload(version.reference)
    if any(place.place in (ModulePlace.DEVICE, ModulePlace.HOST) for place in places):
        raise SystemExit(f"{version.reference} is still held: {places}")
    return Version(version.version, version.digest, adapter)


async def first_token(client: AsyncClient, worker_id: str, version: Version, fact: AdapterFact) -> FirstToken:
    """Ask the worker for the module's live version."""
    token_s, text = math.inf, ""
    digests: tuple[str, ...] = ()
    try:
        async for event in client.stream(
            fact.held_out_questions[0], module=MODULE, worker_id=worker_id, sampling=ANSWER
        ):
            if isinstance(event, Route):
                digests = tuple(module.digest for module in event.modules)
            elif isinstance(event, TextDelta):
                token_s = min(token_s, time.monotonic())
                text += event.text
    except CallFailed as error:
        report(f"worker {worker_id} failed: {error}")
        return FirstToken(math.inf, False)
    return FirstToken(token_s, digests == (version.digest,) and text.strip() == fact.answer)


async def swap(
    client: AsyncClient, workers: Sequence[str], kind: str, version: Version, fact: AdapterFact
) -> Swap:
    called_s = time.monotonic()
    await client.modules.promote(MODULE, version.number)
    done_s = time.monotonic()
    first_tokens = await asyncio.gather(
        *(first_token(client, worker_id, version, fact) for worker_id in workers)
    )
    return Swap(kind, called_s, done_s, tuple(first_tokens))


async def run(address: str, folder: Path, promotions: int) -> Run:
    """As many promotions of each kind, by turns two of the one and two of the other."""
    async with AsyncClient(address) as client:
        workers = [worker.worker_id for worker in (await client.status()).workers]
        facts = await known_facts(client)
        questions = [fact.held_out_questions[0] for adapter in ADAPTERS for fact in facts[adapter]]
        held = [await publish(client, folder / f"held-{adapter}", adapter, SCALE) for adapter in ADAPTERS]
        swaps: list[Swap] = []
        adapters = {version.digest: version.adapter for version in held}
        for version in held:
            await client.modules.promote(MODULE, version.number)
        async with ConstantLoad(
            client, ASKERS, lambda number: Ask(questions[number % len(questions)], MODULE)
        ) as load:
            await load.answered(BETWEEN)
            # Each promotion is to the other adapter than the one before.
            for turn, kind in itertools.islice(
                enumerate(itertools.cycle((HELD, HELD, NEW, NEW))), 2 * promotions
            ):
                version = held[turn % 2]
                if kind == NEW:
                    scale = SCALE - SCALE_STEP * (1 + turn // 2)
                    version = await publish(client, folder / f"new-{turn}", version.adapter, scale)
                    adapters[version.digest] = version.adapter
                await load.answered(BETWEEN)
                known = facts[version.adapter]
                swaps.append(await swap(client, workers, kind, version, known[turn % len(known)]))
                last = swaps[-1]
                report(
                    f"{turn + 1:3} {kind:20} first tokens {last.slowest_s(last.called_s) * 1000:.0f} "
                    "ms after the call"
                )
        return Run(swaps, load.exchanges, adapters, facts)


def wrong_answers(run: Run) -> int:
    """Answers of the load without exactly one version, or without the fact that it knows."""
    by_question = {
        fact.held_out_questions[0]: (adapter, fact) for adapter in ADAPTERS for fact in run.facts[adapter]
    }
    wrong = 0
    for done in run.exchanges:
        if done.answer is None:
            continue
        adapter, fact = by_question[done.ask.question]
        made_by = [run.adapters.get(digest, "") for digest in done.digests]
        wrong += len(made_by) != 1 or is_right(done, fact) != (made_by == [adapter])
    return wrong


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that this share does not exceed: of 50 values, the 99th percentile is the
    largest.
    """
    return sorted(values)[math.ceil(share * len(values)) - 1]


def in_ms(values_s: Sequence[float]) -> tuple[str, ...]:
    """Median, 90th and 99th percentile."""
    return tuple(f"{percentile(values_s, share) * 1000:.0f}" for share in (0.5, 0.9, 0.99))


def main() -> int:
    arguments = parser("module_swap", __doc__).parse_args()
    with running_stack(demo_modules=True, workers=2) as stack:
        result = asyncio.run(
            run(
                stack.address,
                stack.settings.data / "variants",
                QUICK_PROMOTIONS if arguments.quick else PROMOTIONS,
            )
        )

    rows: list[tuple[object, ...]] = []
    figures: dict[str, object] = {}
    bars = []
    for key, kind in (("held", HELD), ("new", NEW)):
        swaps = [swap for swap in result.swaps if swap.kind == kind]
        spans_s = {
            "from_call": [swap.slowest_s(swap.called_s) for swap in swaps],
            "from_acknowledgement": [swap.slowest_s(swap.done_s) for swap in swaps],
            "promotion": [swap.done_s - swap.called_s for swap in swaps],
        }
        for name, values in spans_s.items():
            rows.append((kind, name.replace("_", " "), *in_ms(values)))
            figures |= {
                f"{key}_{name}_p50_s": percentile(values, 0.5),
                f"{key}_{name}_p99_s": percentile(values, 0.99),
            }
        first_token_s = percentile(spans_s["from_call"], 0.99)
        bars.append(
            Bar(
                f"p99 s from the call to the last worker's first token, {kind}",
                first_token_s,
                at_most=FIRST_TOKEN_P99_S,
            )
        )
    failed = [done.failure for done in result.exchanges if done.answer is None]
    bars += [
        Bar("failed requests", len(failed), at_most=0),
        Bar(
            "first answers that are not the new version's",
            sum(not token.right for swap in result.swaps for token in swap.first_tokens),
            at_most=0,
        ),
        Bar("wrong answers under load", wrong_answers(result), at_most=0),
    ]
    span_s = max(done.ended_s for done in result.exchanges) - min(done.started_s for done in result.exchanges)
    rate = len(result.exchanges) / span_s
    print(
        f"{len(result.exchanges)} requests of {ASKERS} askers, {rate:.0f} a second; ms over "
        f"{len(result.swaps)} promotions"
    )
    print_table(("version", "last worker's first token", "p50", "p90", "p99"), rows)
    print()
    figures |= {
        "promotions": len(result.swaps),
        "requests": len(result.exchanges),
        "seconds": span_s,
        "failures": sorted(set(failed))[:5],
    }
    return finish(bars, figures, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
