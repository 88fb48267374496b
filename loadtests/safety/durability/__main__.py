"""What memserve has acknowledged, through kill -9, full disks, failed flushes and power cuts.

A gateway and its registry on a small disk of their own (a tmpfs). Four clients remember, update (forget, and
remember under the same id) and forget memories as fast as they can. At seeded moments, 50 of them, the
gateway or the registry or both are killed; or the disk is filled to its last byte before, during or after a
flush, for some seconds; or every flush fails for some seconds; or the power is cut: both are killed and the
disk loses all that was not synced, which a small LD_PRELOAD layer (`forgetful_disk.c`) keeps apart by
following fsync of files and of folders. Beside it stands an oracle: of every memory, what an acknowledged
call has made of it, or, of a call that failed, the two states that may be.

After every point each memory of that burst is asked for, and at the end each of all, before and after one
more kill -9 with an empty journal, when Milvus alone holds them. A memory that was acknowledged and is not
there is lost; one that was forgotten and is there is back. The counts must agree. Time without service is
from the blow to the next acknowledged call, not counting what the blow itself takes.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.safety.durability.rig import Rig, explain_mount, small_disk
from memserve.client import CallFailed, Client

SEED = 13
CLIENTS = 4
# In Redis and Milvus a memory has one of these texts, or there is none.
State = str | None
KINDS = {
    "kill -9 of the gateway": 10,
    "kill -9 of the registry": 9,
    "kill -9 of both": 9,
    "disk full before a flush": 4,
    "disk full during flushes": 4,
    "disk full after a flush": 4,
    "flushes fail": 4,
    "power cut": 6,
}
QUICK = {"kill -9 of both": 1, "flushes fail": 1, "power cut": 1}
FLUSH_ROWS = 256
SETTLE_TIMEOUT_S = 90.0


@dataclass
class Oracle:
    """Of every memory, by namespace and id, the states that it may be in. Each is one client's alone."""

    may_be: dict[tuple[str, str], set[State]] = field(default_factory=dict)
    acknowledged: int = 0
    unanswered: int = 0


class Burst:
    """Clients that write to one namespace until `stop`."""

    def __init__(self, address: str, namespace: str, oracle: Oracle, seed: int) -> None:
        self.namespace = namespace
        self.wrote = 0
        self.served_s = time.monotonic()
        self._address = address
        self._oracle = oracle
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._write, args=(number, random.Random(seed + number)))
            for number in range(CLIENTS)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _write(self, number: int, rng: random.Random) -> None:
        own: list[str] = []
        fresh = itertools.count()
        client = Client(self._address, timeout_s=12.0)
        while not self._stopping.is_set():
            if not own or rng.random() < 0.7:
                name = f"c{number}-{next(fresh)}"
                own.append(name)
                self._change(client, name, f"text {rng.randrange(10**9)} of {name}")
            else:
                name = rng.choice(own)
                self._change(client, name, None)
                if rng.random() < 0.5:
                    self._change(client, name, f"new text {rng.randrange(10**9)} of {name}")
        client.close()

    def _change(self, client: Client, name: str, wanted: State) -> None:
        key = (self.namespace, name)
        before = self._oracle.may_be.get(key, {None})
        if wanted is not None and before != {None}:
            return  # another content under this id would be refused, and is no change
        try:
            if wanted is None:
                client.forget(self.namespace, name)
            else:
                client.remember(self.namespace, wanted, memory_id=name)
        except CallFailed as failed:
            if wanted is None and failed.code is grpc.StatusCode.NOT_FOUND and None in before:
                self._oracle.may_be[key] = {None}
                return
            refused = failed.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            self._oracle.may_be[key] = before if refused else before | {wanted}
            with self._lock:
                self._oracle.unanswered += 1
            time.sleep(0.05)
            return
        self._oracle.may_be[key] = {wanted}
        with self._lock:
            self._oracle.acknowledged += 1
            self.wrote += 1
            self.served_s = time.monotonic()


@dataclass
class Findings:
    """One line each."""

    lost: list[str] = field(default_factory=list)
    back: list[str] = field(default_factory=list)
    counts: list[str] = field(default_factory=list)
    not_found: list[str] = field(default_factory=list)


def verify(address: str, oracle: Oracle, namespaces: Sequence[str], where: str) -> Findings:
    """Ask for every memory of these namespaces. What was uncertain is certain afterwards."""
    findings = Findings()
    with Client(address, timeout_s=30.0) as client:
        counts = dict(client.namespaces())
        for namespace in namespaces:
            present = []
            for (owner, name), may_be in oracle.may_be.items():
                if owner != namespace:
                    continue
                try:
                    state: State = client.get_memory(namespace, name).text
                except CallFailed as failed:
                    if failed.code is not grpc.StatusCode.NOT_FOUND:
                        raise
                    state = None
                if state not in may_be:
                    (findings.lost if state is None else findings.back).append(
                        f"{where}: {namespace}/{name} is {state!r}, not in {may_be}"
                    )
                oracle.may_be[owner, name] = {state}
                if state is not None:
                    present.append((name, state))
            if counts.get(namespace, 0) != len(present):
                findings.counts.append(
                    f"{where}: {namespace} counts {counts.get(namespace, 0)} memories and has {len(present)}"
                )
            for name, text in present[:: max(1, len(present) // 5)]:
                if name not in [hit.memory.memory_id for hit in client.search([namespace], text)]:
                    findings.not_found.append(f"{where}: {namespace}/{name} is not found by its text")
    return findings


def blow(rig: Rig, burst: Burst, kind: str, rng: random.Random) -> float:
    """Strike while the burst goes on. Returns when the blow was over, on the monotonic clock."""
    match kind:
        case "kill -9 of the gateway":
            time.sleep(rng.uniform(0.2, 1.5))
            rig.kill(gateway=True, registry=False)
        case "kill -9 of the registry":
            time.sleep(rng.uniform(0.2, 1.5))
            rig.kill(gateway=False, registry=True)
        case "kill -9 of both":
            time.sleep(rng.uniform(0.2, 1.5))
            rig.kill(gateway=True, registry=True)
        case "power cut":
            time.sleep(rng.uniform(0.5, 2.5))
            rig.cut_power()
        case "flushes fail":
            with rig.flushes_failing():
                wait_for(lambda: burst.wrote > 1.3 * FLUSH_ROWS, 8.0)
        case _:
            rows = {"before": 0.2, "during": 1.0, "after": 1.2}[kind.split()[2]] * FLUSH_ROWS
            wait_for(lambda: burst.wrote >= rows, 8.0)
            rig.fill()
            time.sleep(rng.uniform(1.0, 3.0))
            if rng.random() < 0.4:
                rig.kill(gateway=rng.random() < 0.5, registry=True)
                time.sleep(1.0)
            rig.make_room()
    return time.monotonic()


def wait_for(condition: Callable[[], bool], within_s: float) -> bool:
    deadline_s = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.01)
    return True


class Run:
    """Blows at a running memserve, and what was found wrong after each of them."""

    def __init__(self, points: Sequence[str], rng: random.Random) -> None:
        """points: the kind of every blow."""
        self.points = list(points)
        self.oracle, self.findings = Oracle(), Findings()
        self.without_service_s: defaultdict[str, list[float]] = defaultdict(list)
        self._rng = rng

    def run(self, folder: Path) -> bool:
        """Returns whether the journal emptied at the end."""
        with small_disk(folder / "disk") as mounted, contextlib.ExitStack() as ends:
            explain_mount(mounted)
            if not mounted:
                self.points = [kind for kind in self.points if not kind.startswith("disk")]
            rig = Rig(folder / "disk", folder)
            ends.callback(rig.close)
            report(f"up after {rig.wait_ready():.1f} s; logs in {folder / 'logs'}")
            for number, kind in enumerate(self.points):
                self._blow(rig, number, kind)
            namespaces = [f"point-{number}" for number in range(len(self.points))]
            self._note(verify(rig.address, self.oracle, namespaces, "at the end"))
            settled = wait_for(lambda: rig.waiting_writes() == 0, SETTLE_TIMEOUT_S)
            report("the journal is empty; kill -9 of both" if settled else "the journal is not empty")
            rig.kill(gateway=True, registry=True)
            time.sleep(0.5)
            rig.wait_ready()
            self._note(verify(rig.address, self.oracle, namespaces, "from Milvus alone"))
        return settled

    def _blow(self, rig: Rig, number: int, kind: str) -> None:
        namespace = f"point-{number}"
        burst = Burst(rig.address, namespace, self.oracle, self._rng.randrange(10**6))
        over_s = blow(rig, burst, kind, self._rng)
        took_s = rig.wait_ready()
        self.without_service_s[kind].append(time.monotonic() - over_s)
        time.sleep(self._rng.uniform(0.0, 0.4))
        burst.stop()
        self._note(verify(rig.address, self.oracle, [namespace], f"point {number} ({kind})"))
        report(
            f"{number + 1:2} of {len(self.points)}: {kind}, {burst.wrote} writes, back after {took_s:.1f} s"
        )

    def _note(self, seen: Findings) -> None:
        for name in ("lost", "back", "counts", "not_found"):
            getattr(self.findings, name).extend(getattr(seen, name))
            for line in getattr(seen, name)[:5]:
                report(f"  {name}: {line}")


def main() -> int:
    options = parser("durability", __doc__).parse_args()
    rng = random.Random(SEED)
    points = [kind for kind, times in (QUICK if options.quick else KINDS).items() for _ in range(times)]
    rng.shuffle(points)
    run = Run(points, rng)
    settled = run.run(Path(tempfile.mkdtemp(prefix="durability-")))
    print_table(
        ("blow", "points", "without service, median s", "longest s"),
        [
            (kind, len(took), f"{statistics.median(took):.1f}", f"{max(took):.1f}")
            for kind, took in run.without_service_s.items()
        ],
    )
    oracle, findings = run.oracle, run.findings
    print(
        f"{oracle.acknowledged} acknowledged changes, {oracle.unanswered} refused or unanswered, "
        f"{len(run.points)} points, seed {SEED}"
    )
    bars = [
        Bar("acknowledged and lost", len(findings.lost), at_most=0),
        Bar("forgotten or replaced, and back", len(findings.back), at_most=0),
        Bar("namespaces whose count is wrong", len(findings.counts), at_most=0),
        Bar("memories that search does not find", len(findings.not_found), at_most=0),
        Bar("journals that did not empty", 0 if settled else 1, at_most=0),
    ]
    longest = {kind: max(took) for kind, took in run.without_service_s.items()}
    return finish(
        bars, {"acknowledged": oracle.acknowledged, "longest_without_service_s": longest}, options.json
    )


if __name__ == "__main__":
    sys.exit(main())
