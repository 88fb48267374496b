"""The Helm chart's own commands, run as a kubelet would run them: do its pods do what the chart says?

The chart is rendered with Helm's engine. Each rendered pod runs as processes in a network namespace: its own
command, environment, volumes, user, probes and grace period (`loadtests/cluster/kubelet`). There are two
gateways, workers with engines of the demo model on a Ray of their own, the trial Redis, and a Milvus server.
NetworkPolicies are nftables rules, and Services lead new connections to ready pods.

Seen are: the time to ready, and whether a pod serves at that moment; every wire between two pods, tried for
real; what listens beside the ports that the chart names; requests that fail while gateways and workers are
replaced; drain times; a roll-out whose pods cannot start.

It needs root, iproute2 and nftables. Not simulated: limits of memory and processors, seccomp, the pull of an
image, a scheduler, and the time that a real cluster needs to make a pod. All pods share one kernel and its
processors, so that times to ready and drain times are upper bounds on two cores.
"""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from loadtests.cluster.cluster_chart.measuring import Run, Seen
from loadtests.cluster.cluster_chart.rollouts import RollOut
from loadtests.harness.figures import Bar, finish, parser, print_table, report


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    options = parser("cluster_chart", __doc__)
    options.add_argument(
        "--workers", type=int, help="workers with real engines (default: 2, with --quick none and no Ray)"
    )
    options.add_argument("--keep", action="store_true", help="keep the folder with the pods' logs")
    chosen = options.parse_args(arguments)
    # Ended by a signal, it leaves no hosts behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    folder = Path(tempfile.mkdtemp(prefix="memserve-chart-"))
    # Users of pods have no more rights here than in a cluster.
    folder.chmod(0o755)
    try:
        workers = chosen.workers if chosen.workers is not None else 0 if chosen.quick else 2
        run = Run(folder, gateways=2, workers=workers)
        seen = run.measure(roll_workers=workers > 0 and not chosen.quick)
    finally:
        if chosen.keep:
            report(f"logs: {folder}/*/log")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return show(seen, chosen.json, wires_least=70 if workers else 20)


def show(seen: Seen, as_json: bool, *, wires_least: int) -> int:
    """The tables and the bars. Returns the exit status."""
    _show_start(seen)
    _show_wires(seen)
    _show_roll_outs(seen)
    serving = {check.pod: check.served for check in seen.checked}
    not_served = sum(not served for served in serving.values())
    failed = {roll.name: len(roll.failed) for roll in seen.roll_outs}
    assert seen.stuck is not None
    bars = [
        Bar("pods that were ready and did not serve", not_served, at_most=0),
        Bar("restarts", sum(record.restarts for record in seen.records), at_most=0),
        Bar("wires that are not as the policies say", sum(not t.as_wanted for t in seen.tries), at_most=0),
        Bar("wires tried", len(seen.tries), at_least=wires_least),
        Bar("ports that listen and have no name", sum(len(pod.unnamed) for pod in seen.listening), at_most=0),
        *[Bar(f"failed requests, {name}", number, at_most=0) for name, number in failed.items()],
        *[Bar(f"requests, {roll.name}", len(roll.requests), at_least=50) for roll in seen.roll_outs],
        Bar("pods that ended badly", sum(len(roll.ended_badly) for roll in seen.roll_outs), at_most=0),
        Bar("broken roll-out: fewest ready gateways", seen.stuck.fewest_ready, at_least=2),
        Bar("broken roll-out: new pods ready", seen.stuck.new_ready, at_most=0),
        Bar("broken roll-out: failed requests", len(seen.stuck.failed), at_most=0),
        Bar("pods killed at the release's end", sum(record.killed for record in seen.ended), at_most=0),
        Bar("helm test: pods that succeeded", seen.helm_test.count(0), at_least=1),
    ]
    return finish(bars, figures_of(seen), as_json)


def figures_of(seen: Seen) -> dict[str, object]:
    """The figures by name."""
    return {
        "all_ready_s": seen.all_ready_s,
        "ready_after_s": {record.name: record.ready_s - record.created_s for record in seen.records},
        "roll_outs": {
            roll.name: {
                "took_s": roll.took_s,
                "requests": len(roll.requests),
                "failed": len(roll.failed),
                "drains_s": roll.drains_s,
                "ready_after_s": roll.ready_after_s,
            }
            for roll in seen.roll_outs
        },
        "wires": len(seen.tries),
        "drained_at_the_end_s": {record.name: record.ended_s - record.deleted_s for record in seen.ended},
    }


def _show_start(seen: Seen) -> None:
    checks = {check.pod: check for check in seen.checked}
    rows = []
    for record in seen.records:
        check = checks.get(record.name)
        served = "-" if check is None else "yes" if check.served else f"NO: {check.failure}"
        rows.append([record.name, f"{record.ready_s - record.created_s:.1f}", record.restarts, served])
    print_table(("pod", "ready after, s", "restarts", "serves then"), rows)
    print(f"all ready after {seen.all_ready_s:.1f} s")
    for check in checks.values():
        if not check.served:
            print(f"ready and did not serve: {check.pod}: {check.failure}")


def _show_wires(seen: Seen) -> None:
    counts = Counter((t.wire.caller, t.wire.part, t.wire.allowed, t.answer) for t in seen.tries)
    print_table(
        ("caller → part", "allowed", "answer", "ports"),
        [
            [f"{caller} → {part}", "yes" if allowed else "no", answer, number]
            for (caller, part, allowed, answer), number in sorted(counts.items())
        ],
    )
    for attempt in seen.tries:
        if not attempt.as_wanted:
            wire = attempt.wire
            print(
                f"NOT AS WANTED: {wire.caller} → {wire.part}:{wire.port} is {attempt.answer}, "
                f"allowed: {wire.allowed}"
            )
    print_table(
        ("pod", "named ports that listen", "other ports"),
        [
            [pod.pod, len(pod.open & pod.named), ", ".join(map(str, sorted(pod.unnamed))) or "-"]
            for pod in seen.listening
        ],
    )


def _show_roll_outs(seen: Seen) -> None:
    print_table(
        ("replaced", "took, s", "requests", "failed", "drain, s", "ready after, s"),
        [_row(roll) for roll in seen.roll_outs],
    )
    for roll in seen.roll_outs:
        for request in roll.failed[:10]:
            print(f"failed: {request.kind}, {request.ended_s - request.started_s:.1f} s: {request.failure}")
        for end in roll.ended_badly:
            print(f"ended badly: {end}")
    if seen.stuck is not None:
        stuck = seen.stuck
        print(
            f"gateways that cannot start: {stuck.fault}; at least {stuck.fewest_ready} old ones ready, "
            f"{len(stuck.failed)} of {len(stuck.requests)} requests failed"
        )


def _row(roll: RollOut) -> list[object]:
    drains, ready = roll.drains_s, roll.ready_after_s
    return [
        roll.name,
        f"{roll.took_s:.1f}",
        len(roll.requests),
        len(roll.failed),
        f"{min(drains):.1f}-{max(drains):.1f}",
        f"{min(ready):.1f}-{max(ready):.1f}",
    ]


if __name__ == "__main__":
    sys.exit(main())
