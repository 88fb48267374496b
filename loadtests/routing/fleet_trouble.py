"""What the fleet does when something goes wrong, in simulation: memserve's policy and waiting rooms.

- A worker is killed at the knee and comes back after half a minute: how long goodput lacks more than 5
  points, and which requests are lost. Only those may be that had begun to stream.
- Two, four and eight gateways with views 100 ms old: goodput and hit rate against one gateway's.
- One of eight tenants asks for ten times its share: what it costs the others, and Jain's index over the
  tokens that the others had.
- Forecasts that are wrong by up to 20 or 50 %, or all by one part.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.routing.goodput import PUBLISHED
from loadtests.simulator.fleet import Death
from loadtests.simulator.outcomes import WINDOW_S, jain
from loadtests.simulator.runs import Ran, Run, simulate_all

KNEE = 2.33
KILLED_AT = 0.4
"""Of the run."""
TRACE_S = 3600.0
BACK_AFTER_S = 30.0
RECOVERED = 0.05
GATEWAYS = (1, 2, 4, 8)
SHARES = 8
FLOOD = 10.0
CALM = 1.2
ERRORS = {
    "exact": (0.0, 1.0),
    "± 20 %": (0.2, 1.0),
    "± 50 %": (0.5, 1.0),
    "× 0.8": (0.0, 0.8),
    "× 1.2": (0.0, 1.2),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    options = parser("fleet_trouble", __doc__)
    options.add_argument("--trace", default=str(PUBLISHED), help="a trace in Mooncake's format")
    options.add_argument("--seeds", type=int, default=5)
    chosen = options.parse_args(arguments)
    seeds = 1 if chosen.quick else chosen.seeds
    base = Run("least_harm", str(chosen.trace), KNEE, rooms=True)
    killed = replace(base, deaths=(Death(KILLED_AT * TRACE_S / KNEE, 0, BACK_AFTER_S),))
    many = {count: replace(base, gateways=count, view_age_s=0.1) for count in GATEWAYS}
    alone = replace(base, speed=CALM, tenants=(1.0,) * SHARES)
    flood_speed = CALM * (SHARES - 1 + FLOOD) / SHARES
    beside = replace(base, speed=flood_speed, tenants=(FLOOD, *(1.0,) * (SHARES - 1)))
    wrong = {name: replace(base, error=error, bias=bias) for name, (error, bias) in ERRORS.items()}
    scenes = [killed, *many.values(), alone, beside, *wrong.values()]
    runs = [replace(scene, seed=seed) for scene in scenes for seed in range(seeds)]
    ended = list(simulate_all(runs, os.cpu_count() or 1, lambda number, ran: report(f"{number}/{len(runs)}")))
    of = {scene: ended[place * seeds : (place + 1) * seeds] for place, scene in enumerate(scenes)}
    bars = [
        *show_death(of[killed]),
        *show_gateways({count: of[scene] for count, scene in many.items()}),
        *show_flood(of[alone], of[beside]),
    ]
    show_errors({name: of[scene] for name, scene in wrong.items()})
    return finish(bars, {}, chosen.json)


def goodput(ran: Sequence[Ran]) -> float:
    return statistics.mean(each.outcomes.requests.goodput for each in ran)


def show_death(ran: Sequence[Ran]) -> list[Bar]:
    """Goodput around the death, in windows."""
    place = int(KILLED_AT * TRACE_S / KNEE / WINDOW_S)
    windows = [
        sum(each.outcomes.windows[number].good for each in ran)
        / max(1, sum(each.outcomes.windows[number].offered for each in ran))
        for number in range(place - 6, place + 12)
    ]
    before = statistics.mean(windows[:6])
    low = [number for number, of in enumerate(windows[6:], 1) if of < before - RECOVERED]
    recovered_s = (max(low) if low else 0) * WINDOW_S
    lost = sum(each.outcomes.ends["lost"] for each in ran) / len(ran)
    print(f"\nA worker of 8 is killed at {KNEE:g} × and is back after {BACK_AFTER_S:g} s")
    cells = [f"{100 * of:.0f}" for of in windows[3:15]]
    print_table(
        ["window", *(f"{WINDOW_S * number:+.0f} s" for number in range(-3, 9))], [["goodput, %", *cells]]
    )
    print(f"{lost:.1f} answers that had begun were lost, of {ran[0].requests} requests")
    unbegun = sum(each.outcomes.lost_before_a_token for each in ran)
    return [
        Bar("seconds until goodput is within 5 points again", recovered_s, at_most=30.0),
        Bar("requests lost that had not begun to stream", unbegun, at_most=0.0),
    ]


def show_gateways(ran: dict[int, list[Ran]]) -> list[Bar]:
    """Several gateways, views 100 ms old."""
    print(f"\nGateways with views 100 ms old, at {KNEE:g} ×")
    rows = []
    for count, of in ran.items():
        hits = sum(each.outcomes.cached_tokens for each in of) / sum(
            each.outcomes.prompt_tokens for each in of
        )
        rows.append([count, f"{100 * goodput(of):.1f}", f"{100 * hits:.1f}"])
    print_table(["gateways", "goodput, %", "tokens hit, %"], rows)
    one = goodput(ran[1])
    worst = max(100 * (one - goodput(of)) for of in ran.values())
    return [Bar("points of goodput that 2, 4 or 8 gateways lose against one", worst, at_most=2.0)]


def show_flood(alone: Sequence[Ran], beside: Sequence[Ran]) -> list[Bar]:
    """One tenant of SHARES asks for FLOOD times its share."""
    others = [f"t{number}" for number in range(1, SHARES)]

    def of_others(ran: Sequence[Ran]) -> float:
        tallies = [each.outcomes.tenants[name] for each in ran for name in others]
        return sum(tally.good for tally in tallies) / sum(tally.offered for tally in tallies)

    def served(ran: Sequence[Ran], name: str) -> float:
        return sum(each.outcomes.served_tokens[name] for each in ran)

    index = jain([served(beside, name) for name in others])
    before, after = of_others(alone), of_others(beside)
    flood = statistics.mean(each.outcomes.tenants["t0"].goodput for each in beside)
    print(f"\nOne of {SHARES} tenants asks for {FLOOD:g} × its share; together {beside[0].run.speed:.2f} ×")
    print_table(
        ["", "goodput, %"],
        [
            ["the others alone", f"{100 * before:.1f}"],
            ["the others beside it", f"{100 * after:.1f}"],
            ["the flood", f"{100 * flood:.1f}"],
        ],
    )
    print(f"Jain's index over the others' uncached tokens: {index:.3f}")
    return [Bar("points of goodput that the others lose", 100 * (before - after), at_most=3.0)]


def show_errors(ran: dict[str, list[Ran]]) -> None:
    """Forecasts that are wrong."""
    print(f"\nWrong forecasts, at {KNEE:g} ×")
    print_table(["forecasts", "goodput, %"], [[name, f"{100 * goodput(of):.1f}"] for name, of in ran.items()])


if __name__ == "__main__":
    sys.exit(main())
