"""`kill -9` of the gateway, the registry's Redis or a worker at seeded points of publishing, promoting and
deleting modules.

A real memserve. One client publishes versions of a few modules, promotes, splits, rolls back and deletes, in
a seeded order; every so often a process is killed at a seeded moment within the operation's usual duration,
and the stack starts it again. The client then does what a user would: it looks, and tries again what has not
happened. Beside it stands what was acknowledged. After every kill the store must be in the state before or
after the operation that was cut off, and in no other: versions, aliases, history and audit agree, no history
is rewritten, every version's files are there and give its digest, every alias answers with the version that
it names. At the end everything that was held or claimed by the dead has run out, a sweep runs, and what
nothing references must be gone.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.stack import running_stack
from loadtests.modules.module_crash.killer import GATEWAY, REGISTRY, WORKER, Figures, Killer
from loadtests.modules.module_crash.oracle import Oracle
from loadtests.modules.module_crash.run import ACKNOWLEDGED, DONE_UNHEARD, KINDS, NOT_DONE, Run
from loadtests.modules.module_crash.sweeping import Left, sweep_all

SEED = 4
WORKERS = 2
# A worker takes half a minute to come back, the gateway a few seconds, Redis one.
KILLS = {GATEWAY: 26, REGISTRY: 20, WORKER: 4}
QUICK_KILLS = {GATEWAY: 4, REGISTRY: 2}


def measure(kills: Mapping[str, int], workers: int) -> tuple[Figures, Left]:
    figures, rng = Figures(), random.Random(SEED)
    with (
        tempfile.TemporaryDirectory(prefix="memserve-crash-") as scratch,
        running_stack(workers=workers, metrics_port=0) as stack,
        Killer(stack, workers, rng, figures) as killer,
    ):
        oracle = Oracle(stack.settings, Path(scratch), figures)
        run = Run(killer, oracle, rng, figures)
        victims = [victim for victim, count in kills.items() for _ in range(count)]
        rng.shuffle(victims)
        run.begin()
        usual = {kind: f"{statistics.median(seconds):.2f} s" for kind, seconds in run.durations_s.items()}
        report(f"usual durations: {usual}")
        for number, victim in enumerate(victims, 1):
            report(f"kill {number} of {len(victims)}")
            run.do(run.draw(), victim)
        run.end()
        versions = [version for of_module in oracle.seen.versions.values() for version in of_module]
        wanted = {digest for version in versions for digest in (version.digest, version.probes_digest)}
        left = asyncio.run(sweep_all(stack, wanted))
        run.check(run.look_again(), oracle.states)
    return figures, left


def rows_of(met: Counter[tuple[str, str, str]], victims: Sequence[str]) -> list[list[object]]:
    outcomes = (ACKNOWLEDGED, DONE_UNHEARD, NOT_DONE)
    return [
        [
            kind,
            victim,
            sum(met[kind, victim, outcome] for outcome in outcomes),
            *(met[kind, victim, outcome] for outcome in outcomes),
        ]
        for kind in KINDS
        for victim in victims
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    chosen = parser("module_crash", __doc__).parse_args(arguments)
    kills, workers = (QUICK_KILLS, 1) if chosen.quick else (KILLS, WORKERS)
    figures, left = measure(kills, workers)
    print_table(
        ("operation", "killed", "kills", ACKNOWLEDGED, DONE_UNHEARD, NOT_DONE),
        rows_of(figures.met, list(kills)),
    )
    print()
    recovery = [
        (victim, len(seconds), f"{statistics.median(seconds):.1f}")
        for victim, seconds in figures.recovery_s.items()
    ]
    print_table(("killed", "times", "all runs again after, s (median)"), recovery)
    print(f"\n{left.orphans_before} blobs without a reference before the sweep, {left.removed} swept")
    for line in (*figures.lost, *figures.inconsistent, *figures.never_done):
        print(line)
    total = sum(kills.values())
    bars = [
        Bar("kills", sum(figures.met.values()), at_least=total),
        Bar("kills while the operation was under way", figures.under_way, at_least=total / 2),
        Bar("acknowledged and lost", len(figures.lost), at_most=0),
        Bar("inconsistencies", len(figures.inconsistent), at_most=0),
        Bar("operations that could never be done", len(figures.never_done), at_most=0),
        Bar("orphan blobs and staging after the sweep", left.orphans + left.leftovers, at_most=0),
        Bar("blobs in use that the sweep took", left.taken, at_most=0),
    ]
    by_kind = {" / ".join(key): count for key, count in figures.met.items()}
    return finish(
        bars,
        {"met": by_kind, "recovery_s": figures.recovery_s, "orphans_before_sweep": left.orphans_before},
        chosen.json,
    )


if __name__ == "__main__":
    sys.exit(main())
