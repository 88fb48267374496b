"""Every wire over TLS: who is refused, what changes of certificates cost users, and what TLS costs.

Hosts are network namespaces of this machine, so it needs root and iproute2. A gateway, two workers without
an engine, Redis and a Milvus run on them with certificates on every wire. Milvus Lite's server speaks no TLS,
so a relay ends it there. A Cluster and a Sentinel run on the machine itself.

The tables of refusals: each wire is used by the part of memserve that uses it. In the first table it calls
the real server with what the column says. In the second it meets a server that shows what the column says,
and "taken" means that it sent something.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loadtests.cluster.cluster_tls.cost import Cost, costs
from loadtests.cluster.cluster_tls.probe import CALLER_CASES, IMPOSTOR_CASES
from loadtests.cluster.cluster_tls.rig import (
    GRPC,
    HTTP,
    METRICS,
    MILVUS,
    REDIS,
    WORKER,
    WORKER_METRICS,
    Rig,
    rig,
)
from loadtests.cluster.cluster_tls.rotation import Rotation, rotate
from loadtests.cluster.hosts import HostsError
from loadtests.harness.certificates import Trial, expired_of, new_trial
from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.tls_redis import cluster, watched_master

LOAD_S = 45.0
Row = dict[str, Any]


def refusals(running: Rig) -> list[Row]:
    """A row for each wire."""
    trials = {
        "right": running.trial,
        "other": new_trial(running.folder / "other", running.trial.hosts),
        "expired": expired_of(running.trial, running.folder / "expired"),
    }
    on_hosts = {
        "grpc": running.url("gw", GRPC), "http": running.url("gw", HTTP),
        "metrics": running.url("gw", METRICS),
        "worker": running.url("w1", WORKER), "worker_metrics": running.url("w1", WORKER_METRICS),
        "redis": running.url("data", REDIS), "milvus": running.url("data", MILVUS),
    }  # fmt: skip
    rows = _probed(running, on_hosts, trials)
    files = running.trial.files("redis")
    with cluster(files, running.folder / "cluster") as url:
        rows += _probed(None, {"cluster": url.partition("://")[2]}, trials)
    with watched_master(files, running.folder / "sentinel") as url:
        rows += _probed(None, {"sentinel": url.partition("://")[2].partition("/")[0]}, trials)
    return rows


def _probed(running: Rig | None, addresses: dict[str, str], trials: dict[str, Trial]) -> list[Row]:
    """running: from its client's host. None: from this machine."""
    job = {"addresses": addresses, **{name: str(trial.folder) for name, trial in trials.items()}}
    command = [sys.executable, "-m", "loadtests.cluster.cluster_tls.probe", json.dumps(job)]
    return list(json.loads(running.hosts["client"].run(command, 180) if running else _run(command)))


def _run(command: Sequence[str]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8", timeout=180).stdout


def main() -> int:
    options = parser("cluster_tls", __doc__).parse_args()
    begun_s = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as folder:
            with rig(Path(folder)) as running:
                report(f"{time.monotonic() - begun_s:.0f} s  everything runs")
                rows = refusals(running)
                rotation = rotate(running, LOAD_S if not options.quick else 22.0)
            rounds, tokens, requests = (2, 40, 40) if options.quick else (7, 150, 300)
            (Path(folder) / "cost").mkdir()
            measured = costs(Path(folder) / "cost", rounds, tokens, requests)
    except HostsError as error:
        report(str(error))
        return 1
    _print(rows, rotation, measured)
    wrong = _wrong(rows)
    failed = sum(len(texts) for texts in rotation.failures.values())
    bars = [
        Bar("wires", len(rows), at_least=10),
        Bar("callers and impostors that were taken for the right one", len(wrong), at_most=0),
        Bar("right callers that were not served", len(_unserved(rows)), at_most=0),
        Bar("requests while certificates changed", sum(rotation.requests.values()), at_least=100),
        Bar("of these, failed", failed, at_most=0),
        Bar("ports that took every change", len(rotation.taken_s), at_least=7),
        Bar("served by new connections afterwards", int(rotation.answers_after), at_least=1),
        Bar("gRPC, a token: TLS / plain", measured["token_grpc"].ratio, at_most=1.5),
        Bar("HTTP, a token: TLS / plain", measured["token_http"].ratio, at_most=1.5),
    ]
    figures = {
        "refusals": rows,
        "wrong": wrong,
        "rotation": asdict(rotation),
        "costs": {name: asdict(cost) for name, cost in measured.items()},
        "seconds": round(time.monotonic() - begun_s),
    }
    return finish(bars, figures, options.json)


def _wrong(rows: Sequence[Row]) -> list[str]:
    return [
        f"{row['wire']}: {side}, {case}"
        for row in rows
        for side in ("caller", "impostor")
        for case, outcome in row[side].items()
        if case != "right" and outcome != "refused"
    ]


def _unserved(rows: Sequence[Row]) -> list[str]:
    return [
        row["wire"]
        for row in rows
        if row["caller"]["right"] != "served" or row["impostor"]["right"] != "taken"
    ]


def _print(rows: Sequence[Row], rotation: Rotation, measured: dict[str, Cost]) -> None:
    for side, title, cases in (
        ("caller", "who calls the server with …", CALLER_CASES),
        ("impostor", "what a caller does that meets a server with …", IMPOSTOR_CASES),
    ):
        print_table(
            (title, *cases), [(row["wire"], *(row[side].get(case, "–") for case in cases)) for row in rows]
        )
        print()
    print_table(
        ("new certificates: seconds until shown", "median", "most"),
        [
            (port, f"{sorted(seconds)[len(seconds) // 2]:.1f}", f"{max(seconds):.1f}")
            for port, seconds in rotation.taken_s.items()
        ],
    )
    print()
    print_table(
        ("requests while every certificate and both authorities changed", "begun", "failed"),
        [
            (kind, str(count), str(len(rotation.failures.get(kind, []))))
            for kind, count in rotation.requests.items()
        ],
    )
    for kind, texts in rotation.failures.items():
        print(f"{kind}: {texts[0]}")
    print()
    units = {"chunk_ms": "KV from Redis, 1 MiB over TCP, ms"}
    print_table(
        ("the gateway's processor time, us", "plain", "with TLS", "ratio"),
        [
            (
                units.get(name, name.replace("_", ", ")),
                f"{cost.plain:.2f}",
                f"{cost.tls:.2f}",
                f"{cost.ratio:.2f}",
            )
            for name, cost in measured.items()
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
