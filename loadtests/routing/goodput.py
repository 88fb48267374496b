"""How much load each routing policy sustains at 90 % goodput over offered requests, in simulation.

The policies and the waiting room are memserve's own objects; engines, caches and time are simulated
(loadtests/simulator). A request is good when its TTFT is at most 2 s + 0.1 ms for each prompt token, and its
TPOT at most 100 ms. Refused, late and lost requests are not good. All policies have the same engines, caches
and forecasts. Baselines run without admission, with plain admission (refused where margin × forecast misses
the deadline) and with that margin tuned.

Traces: any file of Mooncake's format (--trace), and a synthetic one (`synthetic_trace` of
loadtests/simulator/traces.py says how it is made). Tenants and adapters are overlaid by a seeded generator.
A report with plots: --report FOLDER.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.routing.grids import OURS, PLAIN, TUNED, WITHOUT, Grid, Line, Results, grids
from loadtests.simulator.runs import Ran, Run, simulate, simulate_all

PUBLISHED = Path(__file__).resolve().parents[3] / "shared" / "traces" / "mooncake_conversation.jsonl.gz"
SEEDS = 5
MILLION = 1_000_000
KNEE = 0.9


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    options = parser("goodput", __doc__)
    options.add_argument(
        "--trace", type=Path, default=PUBLISHED, help=f"a trace in Mooncake's format (default: {PUBLISHED})"
    )
    options.add_argument("--seeds", type=int, default=SEEDS, help=f"seeds (default: {SEEDS})")
    options.add_argument("--scene", action="append", help="only this scene; may be given again")
    options.add_argument("--report", type=Path, help="write report.md and its plots into this folder")
    chosen = options.parse_args(arguments)
    if not chosen.trace.is_file():
        options.error(f"--trace: {chosen.trace} is no file; give a trace in Mooncake's format")
    scenes = grids(chosen.trace, quick=chosen.quick, seeds=1 if chosen.quick else chosen.seeds)
    if chosen.scene:
        unknown = set(chosen.scene) - scenes.keys()
        if unknown:
            options.error(f"--scene: {', '.join(unknown)}; there are {', '.join(scenes)}")
        scenes = {name: grid for name, grid in scenes.items() if name in chosen.scene}
    results = run_all(scenes)
    for of in results.values():
        print_scene(of)
    bars = bars_of(results)
    figures: dict[str, object] = {name: of.figures() for name, of in results.items()}
    if not chosen.quick and not chosen.scene:
        took_s = million(chosen.trace)
        bars.append(Bar("seconds for a million requests on one core", took_s, at_most=600))
    if chosen.report:
        from loadtests.routing.plots import write_report

        report(f"the report is {write_report(results, bars, chosen.report)}")
    return finish(bars, figures, chosen.json)


def run_all(scenes: dict[str, Grid]) -> dict[str, Results]:
    """Every run of every scene, on all cores."""
    owners = [name for name, grid in scenes.items() for _ in grid.runs()]
    runs = [run for grid in scenes.values() for run in grid.runs()]
    started_s = time.monotonic()

    def progress(number: int, ran: Ran) -> None:
        left_s = (time.monotonic() - started_s) / number * (len(runs) - number)
        report(
            f"{number}/{len(runs)} {owners[number - 1]}, {ran.run.policy} {ran.run.margin:g} at "
            f"{ran.run.speed:g}: {100 * ran.outcomes.requests.goodput:.1f} % ({left_s:.0f} s left)"
        )

    by_scene: dict[str, list[Ran]] = {name: [] for name in scenes}
    for owner, ran in zip(owners, simulate_all(runs, os.cpu_count() or 1, progress), strict=True):
        by_scene[owner].append(ran)
    return {name: Results(grid, by_scene[name]) for name, grid in scenes.items()}


def print_scene(of: Results) -> None:
    """Goodput by load, the sustained load, and what goodput hides: weights and lengths."""
    grid = of.grid
    loads = grid.loads
    print(f"\n{grid.name}; goodput in % of offered requests, {grid.seeds} seeds (± half of a 95 % interval)")
    rows = []
    for line in grid.lines:
        cells = [
            f"{100 * of.goodput(line, load):.1f} ± {100 * of.interval(line, load):.1f}" for load in loads
        ]
        rows.append([line.name, *cells, f"{of.sustained(line):.2f}"])
    print_table(["policy", *(f"{load:g} ×" for load in loads), "load at 90 %"], rows)
    print("weighted by prompt tokens; at the last load prompts below 4k / 16k / 48k / longer; forecast")
    rows = []
    for line in grid.lines:
        cells = [f"{100 * of.weighted(line, load):.1f}" for load in loads]
        classes = " / ".join(f"{100 * part:.0f}" for part in of.classes(line, loads[-1]))
        error, bias = of.forecast_errors(line, loads[0])
        rows.append([line.name, *cells, classes, f"{100 * error:.0f} %, {100 * bias:+.0f} %"])
    print_table(
        ["policy", *(f"{load:g} ×" for load in loads), "by length", f"MAPE, bias at {loads[0]:g} ×"], rows
    )


def bars_of(results: dict[str, Results]) -> list[Bar]:
    """Of the scenes that have run."""
    bars = []

    def ratio(name: str, ours: Results, other: Results, lines: Sequence[Line], least: float) -> None:
        bars.append(Bar(name, ours.sustained(OURS) / other.best(lines), at_least=least))

    for trace in ("conversation", "synthetic"):
        fresh, free = results.get(trace), results.get(f"{trace}, no admission")
        stale = results.get(f"{trace}, 4 gateways")
        if fresh and free:
            ratio(f"{trace}: load at 90 %, ours ÷ best without admission", fresh, free, WITHOUT, 1.8)
        if stale:
            what = f"{trace}, 4 gateways, views 100 ms old: ours ÷ best"
            ratio(f"{what} with plain admission", stale, stale, PLAIN, 1.15)
            ratio(f"{what} with its margin tuned", stale, stale, TUNED, 1.05)
    if adapters := results.get("adapters"):
        others = [line for line in adapters.grid.lines if line != OURS]
        ratio("64 adapters over 8 slots: ours ÷ best that knows no slots", adapters, adapters, others, 1.25)
    if many := results.get("64 workers"):
        ratio("64 workers: ours ÷ best with plain admission", many, many, PLAIN, 0.99)
    for name, of in results.items():
        if OURS in of.grid.lines:
            bars.append(Bar(f"{name}: points below the best at any load", of.most_behind(), at_most=0.5))
            if name not in ("adapters", "no sharing"):
                behind = of.most_behind(weighted=True, above=KNEE)
                bars.append(Bar(f"{name}: the same by prompt tokens, from the knee on", behind, at_most=0.0))
    return bars


def million(trace: Path) -> float:
    """Seconds for a million requests on 64 workers, with memory told."""
    import resource

    run = Run("least_harm", str(trace), 4.0, workers=64, copies=8, scan_all=False, rooms=True)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ran = simulate(replace(run, repeat=-(-MILLION // (8 * 12_000))))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) >> 10
    report(f"{ran.requests} requests in {ran.took_s:.0f} s, {grown} MiB more memory")
    return ran.took_s * MILLION / ran.requests


if __name__ == "__main__":
    sys.exit(main())
