"""Cartridges in a real memserve: are the answers transformers' with the same KV, and what do they cost?

Three documents become cartridges out of their own KV. Two tenants have them and an adapter. Both ask while
prompts that nobody shares take the engines' blocks, and while a worker's engine is killed. Each answer is
held against transformers'. Then speed is measured on the quiet stack. The short form has one worker, and
kills nothing.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.stack import running_stack, variant
from loadtests.harness.up import is_engine
from loadtests.modules.cartridge_serving.speed import Speed, measured
from loadtests.modules.cartridge_serving.traffic import Counts, Traffic, counted, ready_again
from loadtests.modules.cartridge_serving.world import ADAPTER, World
from memserve.client import AsyncClient
from memserve.config import MIB, STACK_MARK
from memserve.embedded import Stack
from memserve.processes.marks import processes_with

SEED = 20
KEYS = {"first-key-of-the-test": "first", "second-key-of-the-test": "second"}
REQUESTS, QUICK_REQUESTS = 500, 80
QUESTIONS, QUICK_QUESTIONS = 10, 2
ROUNDS, QUICK_ROUNDS = 5, 2
VARIANTS, QUICK_VARIANTS = 12, 3
CONTEXT_TOKENS = 2048
BACK_WITHIN_S = 120.0
TO_WARM_PREFIX, TTFT_TO_BASE, SUPPLY_MS = 1.0, 1.1, 50.0


class Killer:
    """Kills the engine of one worker when a request begins."""

    def __init__(self, data: Path, at_request: int) -> None:
        """data: the directory of the memserve. at_request: 0 for never."""
        self._data = data
        self._at_request = at_request
        self.killed = 0

    def __call__(self, number: int) -> None:
        if not self._at_request or number != self._at_request:
            return
        engine = next(filter(is_engine, processes_with({STACK_MARK: str(self._data)})), None)
        if engine is not None:
            report(f"  engine {engine.pid} is killed")
            engine.kill()
            self.killed += 1


async def run(stack: Stack, folder: Path, world: World, *, quick: bool) -> tuple[Counts, Counts, Speed, int]:
    first, second = KEYS
    cartridges = world.write(folder / "cartridges")
    adapter = variant(ADAPTER, folder / ADAPTER)  # without its probes, which take long
    async with AsyncClient(stack.address, first) as own, AsyncClient(stack.address, second) as other:
        clients = {"first": own, "second": other}
        for client in clients.values():
            for name, path in {**cartridges, ADAPTER: adapter}.items():
                version = await client.modules.publish(name, path)
                await client.modules.promote(name, version.version, force=True)
        workers = (await own.status()).workers
        report(f"{len(world.questions)} questions, one after the other")
        alone = Traffic(clients, world.questions, SEED)
        for question in world.questions:
            alone.asked.append(await alone.ask("first", question))
        report(f"{counted(alone.asked)}; mixed traffic")
        requests = QUICK_REQUESTS if quick else REQUESTS
        killer = Killer(stack.settings.data, 0 if quick else requests // 3)
        traffic = Traffic(clients, world.questions, SEED, known=alone.known)
        await traffic.run(requests, killer)
        await ready_again(own, len(workers), BACK_WITHIN_S)
        report(f"{counted(traffic.asked)}; speed")
        rounds, variants = (QUICK_ROUNDS, QUICK_VARIANTS) if quick else (ROUNDS, VARIANTS)
        speed = await measured(own, world, folder, rounds, variants)
    return counted(alone.asked), counted(traffic.asked), speed, killer.killed


def bars_of(alone: Counts, mixed: Counts, speed: Speed, *, killed: int, quick: bool) -> list[Bar]:
    return [
        Bar("answers that are not transformers', one by one", alone.wrong_with_cartridge, at_most=0),
        Bar("the same in mixed traffic", mixed.wrong_with_cartridge, at_most=0),
        Bar("wrong answers without a cartridge", alone.wrong_others + mixed.wrong_others, at_most=0),
        Bar("hits of another tenant's KV", mixed.foreign_hits, at_most=0),
        Bar("engines killed meanwhile", killed, at_least=0 if quick else 1),
        Bar("tokens a second, of those with a warm prefix", speed.to_warm_prefix, at_least=TO_WARM_PREFIX),
        Bar("TTFT, of the base's", speed.ttft_to_base, at_most=TTFT_TO_BASE),
        Bar("ms to supply a fresh worker, over a local hit", speed.supply_ms, at_most=SUPPLY_MS),
    ]


def main() -> int:
    arguments = parser("cartridge_serving", __doc__).parse_args()
    quick = arguments.quick
    report("transformers answers the questions while memserve starts")
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(1) as beside:
        drawn = beside.submit(World, SEED, QUICK_QUESTIONS if quick else QUESTIONS)
        keys = Path(scratch) / "keys.json"
        keys.write_text(json.dumps(KEYS), encoding="utf-8")
        with running_stack(
            workers=1 if quick else 2,
            api_keys_file=keys,
            kv_device_bytes=64 * MIB,
            max_context_tokens=CONTEXT_TOKENS,
            kv_always_load=True,
        ) as stack:
            world = drawn.result()
            alone, mixed, speed, killed = asyncio.run(run(stack, Path(scratch), world, quick=quick))
    columns = ("requests", "with_cartridge", "wrong_with_cartridge", "wrong_others", "foreign_hits", "failed")
    print_table(
        ("traffic", *(name.replace("_", " ") for name in columns)),
        [
            (title, *(getattr(counts, name) for name in columns))
            for title, counts in (("one by one", alone), ("mixed", mixed))
        ],
    )
    print()
    rows = (
        ("tokens/s; with a warm prefix", speed.tokens_per_s, speed.warm_prefix_tokens_per_s),
        ("TTFT ms; of the base", speed.ttft_ms, speed.base_ttft_ms),
        ("TTFT ms on a fresh worker; a local hit", speed.fresh_ttft_ms, speed.local_ttft_ms),
    )
    print_table(
        ("", "cartridge", "other"), [(name, f"{own:.1f}", f"{other:.1f}") for name, own, other in rows]
    )
    print()
    figures: dict[str, object] = {"one_by_one": asdict(alone), "mixed": asdict(mixed), **asdict(speed)}
    figures |= {"engines_killed": killed}
    bars = bars_of(alone, mixed, speed, killed=killed, quick=quick)
    return finish(bars, figures, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
