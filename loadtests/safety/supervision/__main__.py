"""`kill -9` of the parts of `memserve up`, in pairs and again and again: does everything come back by itself,
and does the rest go on?

A real `memserve up` with two workers of the demo model. Clients ask without a pause: answers, memories,
searches, lists of modules. Meanwhile parts are killed: pairs of them in a seeded order, 0 to 10 s apart, and
each part several times in a row, as soon as it is there again. Everything must be back within 90 s without a
hand, and a request that does not need what is dead must not fail. At the end `memserve up` itself is killed:
no process may be left after 10 s, and a new one must start on the same directory.
"""

from __future__ import annotations

import itertools
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.safety.supervision.asking import Asking, Request
from loadtests.safety.supervision.kills import BACK_WITHIN_S, LOOK_S, Run, Trial
from loadtests.safety.supervision.parts import PARTS, REMEMBER, WORKERS, WatchedUp
from memserve.client import Client
from memserve.demo import MODEL_DIR
from memserve.embedded import marked_processes

SEED = 9
PAIRS = 30
# Of parts that are back in seconds.
QUICK_PAIRS = [("registry", "gateway", 1.0)]
IN_A_ROW = 5
GAP_MAX_S = 10.0
NONE_LEFT_WITHIN_S = 10.0


def pairs_of(count: int, rng: random.Random) -> list[tuple[str, str, float]]:
    """Seeded pairs of different parts, no pair twice in the same order, with the seconds between the two
    kills.
    """
    drawn = rng.sample(list(itertools.permutations(PARTS, 2)), count)
    return [(first, second, rng.uniform(0, GAP_MAX_S)) for first, second in drawn]


def measure(
    pairs: Sequence[tuple[str, str, float]], in_a_row: int, folder: Path, *, start_again: bool
) -> tuple[list[Trial], list[Request], dict[str, float]]:
    """pairs: as of `pairs_of`. Returns the trials, all requests, and the figures of `memserve up` itself
    killed.
    """
    # Under another path the demo model comes without its modules.
    (folder / "demo_model").symlink_to(MODEL_DIR)
    up = WatchedUp(folder / "data", folder / "demo_model", WORKERS)
    figures: dict[str, float] = {}
    try:
        up.wait_until_ready()
        run = Run(up)
        with Asking(up.address) as asking:
            time.sleep(3)
            for first, second, gap_s in pairs:
                run.pair(first, second, gap_s)
            for part in PARTS if in_a_row else ():
                run.in_a_row(part, in_a_row)
        report("memserve up itself")
        up.process.kill()
        up.process.wait()
        killed_s = time.monotonic()
        while list(marked_processes(up.data)) and time.monotonic() - killed_s < NONE_LEFT_WITHIN_S:
            time.sleep(LOOK_S)
        figures["processes left"] = len(list(marked_processes(up.data)))
        figures["gone after, s"] = time.monotonic() - killed_s
        if not start_again:
            return run.trials, asking.requests, figures
        started_s = time.monotonic()
        up = WatchedUp(folder / "data", folder / "demo_model", WORKERS)
        up.wait_until_ready()
        figures["started again after, s"] = time.monotonic() - started_s
        with Client(up.address) as client:
            figures["memories found again"] = client.namespaces()["supervision"]
        figures["memories acknowledged"] = sum(
            request.kind == REMEMBER and not request.failure for request in asking.requests
        )
    finally:
        up.process.terminate()
        up.process.wait(120)
    return run.trials, asking.requests, figures


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    options = parser("supervision", __doc__)
    options.add_argument(
        "--pairs", type=int, help=f"how many pairs (default: {PAIRS}, with --quick {len(QUICK_PAIRS)})"
    )
    options.add_argument(
        "--in-a-row",
        type=int,
        help=f"how many times in a row each part is killed (default: {IN_A_ROW}, with --quick 0)",
    )
    chosen = options.parse_args(arguments)
    pairs = QUICK_PAIRS if chosen.quick else pairs_of(PAIRS, random.Random(SEED))
    if chosen.pairs is not None:
        pairs = pairs_of(chosen.pairs, random.Random(SEED))
    in_a_row = chosen.in_a_row if chosen.in_a_row is not None else 0 if chosen.quick else IN_A_ROW
    report(
        f"{len(pairs)} pairs and {in_a_row} × {len(PARTS)} parts: about "
        f"{1 + len(pairs) * 0.8 + in_a_row * 2:.0f} minutes"
    )
    least = len(pairs) + (len(PARTS) if in_a_row else 0)
    folder = Path(tempfile.mkdtemp(prefix="memserve-sup-"))
    try:
        trials, requests, figures = measure(pairs, in_a_row, folder, start_again=not chosen.quick)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return show_results(trials, requests, figures, chosen.json, trials_least=least)


def show_results(
    trials: Sequence[Trial],
    requests: Sequence[Request],
    figures: dict[str, float],
    as_json: bool,
    *,
    trials_least: int,
) -> int:
    """The tables and the bars. figures: of `memserve up` itself. Returns the exit status."""
    rows = [
        [
            trial.what,
            f"{trial.back_s:.1f}" if trial.back_s is not None else "NOT BACK",
            sum(trial.from_s <= request.started_s < trial.until_s for request in requests),
            sum(
                trial.from_s <= request.started_s < trial.until_s and bool(request.failure)
                for request in requests
            ),
            len(trial.failed(requests, trials)),
        ]
        for trial in trials
    ]
    print_table(("killed", "all back after, s", "requests", "failed", "failed without need"), rows)
    without_need = [request for trial in trials for request in trial.failed(requests, trials)]
    for request in without_need[:20]:
        print(
            f"failed though nothing that it needs was dead: {request.kind}, "
            f"{request.ended_s - request.started_s:.1f} s: {request.failure}"
        )
    print_table(("memserve up killed", ""), [[name, f"{figure:.1f}"] for name, figure in figures.items()])
    back = [trial.back_s for trial in trials if trial.back_s is not None]
    bars = [
        Bar("trials", len(trials), at_least=trials_least),
        Bar("not back by itself", len(trials) - len(back), at_most=0),
        Bar("longest until everything was back, s", max(back, default=float("inf")), at_most=BACK_WITHIN_S),
        Bar("requests that failed though they needed nothing that was dead", len(without_need), at_most=0),
        Bar("processes left 10 s after memserve up was killed", figures["processes left"], at_most=0),
    ]
    if "memories found again" in figures:
        lost = max(0.0, figures["memories acknowledged"] - figures["memories found again"])
        bars.append(Bar("acknowledged memories lost", lost, at_most=0))
    median = statistics.median(back) if back else None
    return finish(
        bars, {"rows": rows, "median_back_s": median, "requests": len(requests), "up": figures}, as_json
    )


if __name__ == "__main__":
    sys.exit(main())
