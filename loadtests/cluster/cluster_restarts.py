"""Every part is restarted, one after another, in each order of two, under load: is anything lost that was
acknowledged?

Two gateways, two real workers of the demo model, a registry, a cache, and a `milvus-lite server`, each a
process. In each trial one part is ended and started again, and as soon as its process runs, another one is
too. Once each part gets SIGTERM, once SIGKILL. A worker is ended by its own process; Ray starts another.

Meanwhile answers, memories, forgets, publications and promotions go on, each call at the next gateway.
Nothing is sent again. What was acknowledged must be there at the end of the trial, at both gateways: the
memories by their ids, forgotten ones gone, versions, every revision of the alias, and their events in the
audit. At the end of all trials 20 memories of each must be found by search too. What failed must have failed
with a status that a caller can act on, and with a text.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from loadtests.cluster.acknowledged import Acknowledged, Load, Lost, look, not_found_by_search, until_well
from loadtests.cluster.pieces import CACHE, MILVUS, REGISTRY, WORKER, Pieces, pieces
from loadtests.harness.figures import Bar, finish, parser, print_table, report
from memserve.client import AsyncClient

GATEWAY = "gateway"
PARTS = (REGISTRY, CACHE, MILVUS, GATEWAY, WORKER)
QUICK_TRIALS = 3
QUICK_PAIRS = [(REGISTRY, GATEWAY), (GATEWAY, MILVUS), (MILVUS, REGISTRY)]
MODES = {"term": signal.SIGTERM, "kill": signal.SIGKILL}
WORKERS = 2
BEFORE_S = 1.0
BACK_WITHIN_S = 300.0


@dataclass
class Trial:
    """Two parts, and what became of what was acknowledged meanwhile."""

    first: str
    second: str
    mode: str
    back_s: float = float("inf")
    """From the second start until all calls succeed at both gateways."""
    known: Acknowledged = field(default_factory=Acknowledged)
    lost: Lost = field(default_factory=Lost)


async def restart(running: Pieces, name: str, number: signal.Signals) -> None:
    """End the part, and start it again. Returns when its new process runs, which may not be up yet."""
    if name == WORKER:
        for pid in list((await running.ready_workers()).values())[:1]:
            with contextlib.suppress(psutil.Error):
                victim = psutil.Process(pid)
                victim.send_signal(number)
                await asyncio.to_thread(victim.wait, 30)
        return
    part = running.gateways[0] if name == GATEWAY else running.parts[name]
    await asyncio.to_thread(part.end, number)
    part.start()


async def trial_of(
    running: Pieces, clients: Sequence[AsyncClient], first: str, second: str, mode: str, folder: Path
) -> Trial:
    trial = Trial(first, second, mode)
    load = Load(clients, folder)
    async with load.running() as trial.known:
        await asyncio.sleep(BEFORE_S)
        for name in (first, second):
            await restart(running, name, MODES[mode])
        began_s = time.monotonic()
        await running.until_all_up()
        if WORKER in (first, second):
            await running.until_workers(WORKERS, BACK_WITHIN_S)
        with contextlib.suppress(TimeoutError):
            await until_well(clients, BACK_WITHIN_S)
            trial.back_s = time.monotonic() - began_s
    for client in clients:
        found = await look(client, trial.known)
        trial.lost.memories += found.memories
        trial.lost.modules += found.modules
        trial.lost.audit += found.audit
    return trial


async def measure(
    running: Pieces, pairs: Sequence[tuple[str, str]], modes: Sequence[str], folder: Path
) -> tuple[list[Trial], list[str]]:
    """The trials, and the memories that no search finds at the end."""
    trials: list[Trial] = []
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(AsyncClient(gateway.address, timeout_s=20.0))
            for gateway in running.gateways
        ]
        await until_well(clients, BACK_WITHIN_S)
        for mode, (first, second) in itertools.product(modes, pairs):
            report(f"SIG{mode.upper()}: {first}, {second}")
            own = folder / f"{mode}-{first}-{second}"
            trial = await trial_of(running, clients, first, second, mode, own)
            report(f"  back after {trial.back_s:.1f} s, {trial.lost.total} lost")
            trials.append(trial)
        missing = []
        for number, trial in enumerate(trials):
            missing += [
                f"trial {number}: {name}" for name in await not_found_by_search(clients[1], trial.known)
            ]
    return trials, missing


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    options = parser("cluster_restarts", __doc__)
    options.add_argument("--mode", choices=list(MODES), help="only this signal (default: both)")
    options.add_argument("--part", choices=PARTS, help="only pairs with this part")
    chosen = options.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    pairs = QUICK_PAIRS if chosen.quick and not chosen.part else list(itertools.permutations(PARTS, 2))
    pairs = [pair for pair in pairs if chosen.part in (None, *pair)]
    if chosen.quick:
        pairs = pairs[:QUICK_TRIALS]
    modes = [chosen.mode] if chosen.mode else ["kill"] if chosen.quick else list(MODES)
    folder = Path(tempfile.mkdtemp(prefix="ms-re-"))
    try:
        with pieces(folder, workers=WORKERS, shutdown_grace_s=3.0) as running:
            trials, missing = asyncio.run(measure(running, pairs, modes, folder / "published"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return told(trials, missing, as_json=chosen.json)


def told(trials: Sequence[Trial], missing: Sequence[str], *, as_json: bool) -> int:
    """Returns the exit status."""
    rows = [
        [
            f"SIG{trial.mode.upper()}: {trial.first}, {trial.second}",
            f"{trial.back_s:.1f}",
            trial.known.ended.total(),
            trial.known.refused.total(),
            len(trial.known.memories) + len(trial.known.forgotten),
            len(trial.known.versions) + len(trial.known.promotions),
            trial.lost.total,
        ]
        for trial in trials
    ]
    columns = ("restarted", "back after, s", "calls", "refused", "memories", "versions, revisions", "lost")
    print_table(columns, rows)
    refused = sum((trial.known.refused for trial in trials), start=Counter[str]())
    print_table(("refused", "calls"), [[what, count] for what, count in sorted(refused.items())])
    unclear = [failure for trial in trials for failure in trial.known.unclear]
    lost = [
        f"{trial.first}, {trial.second}: {sentence}"
        for trial in trials
        for sentence in (*trial.lost.memories, *trial.lost.modules, *trial.lost.audit)
    ]
    for line in (*lost[:20], *unclear[:20], *missing[:20]):
        print(line)
    acknowledged = sum(
        len(trial.known.memories) + len(trial.known.forgotten) + len(trial.known.versions)
        + len(trial.known.promotions)
        for trial in trials
    )  # fmt: skip
    bars = [
        Bar("acknowledged", acknowledged, at_least=20 * len(trials)),
        Bar("acknowledged and lost", len(lost), at_most=0),
        Bar("memories that no search finds", len(missing), at_most=0),
        Bar("failures that do not say what to do", len(unclear), at_most=0),
        Bar("longest until all was well, s", max(trial.back_s for trial in trials), at_most=BACK_WITHIN_S),
    ]
    figures: dict[str, object] = {
        "trials": len(trials),
        "acknowledged": acknowledged,
        "refused": dict(refused),
        "back_s": [trial.back_s for trial in trials],
    }
    return finish(bars, figures, as_json)


if __name__ == "__main__":
    sys.exit(main())
