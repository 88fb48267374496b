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
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.stack import running_stack
from loadtests.safety.neighbours.noisy import answer_of, noisy_main, noisy_process
from loadtests.safety.neighbours.quiet import QUIET_MEMORIES, Quiet
from loadtests.safety.neighbours.tenants import NOISY_KEY, QUIET_KEY, SEED
from memserve.client import AsyncClient

RATIO_MAX = 3.0
TURNS = 2
TURN_S, QUICK_TURN_S = 30.0, 5.0
# What was begun before a turn is measured in neither.
SETTLE_S = 2.0
QUICK_KINDS = ("prompts of 3.9 MB", "search")


@dataclass
class Figures:
    """Of one kind of flood."""

    flood: str
    alone: dict[str, list[float]]
    """Seconds of quiet's calls without the flood, by kind of call."""
    beside: dict[str, list[float]]
    """The same beside the flood."""
    outcomes: Counter[str]
    """Noisy's calls."""
    failed: list[str]
    """Quiet's calls that were refused or failed."""

    def ratio(self, call: str) -> float:
        return p99(self.beside[call]) / p99(self.alone[call])


def p99(seconds: list[float]) -> float:
    """With fewer than a hundred samples this is nearly the worst of them; there is no better guess."""
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]


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
            measured = [figures async for figures in measure(stack.address, folder, chosen, turns, turn_s)]
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
        list(map(row, measured)),
    )
    bars = [
        Bar(f"{figures.flood}: {call}, p99 beside ÷ alone", figures.ratio(call), at_most=RATIO_MAX)
        for figures in measured
        for call in figures.alone
    ]
    failed = [failure for figures in measured for failure in figures.failed]
    for failure in failed[:10]:
        print(failure)
    bars.append(Bar("calls of quiet that were refused or failed", len(failed), at_most=0))
    samples = {
        figures.flood: {call: len(seconds) for call, seconds in figures.beside.items()}
        for figures in measured
    }
    return finish(
        bars,
        {"samples": samples, "noisy": {figures.flood: figures.outcomes for figures in measured}},
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
