"""`kill -9` of the parts of `memserve up`, in pairs and again and again: does everything come back by itself,
and does the rest go on?

A real `memserve up` with two workers of the demo model. Clients ask without a pause: answers, memories,
searches, lists of modules. Meanwhile parts are killed: pairs of them in a seeded order, 0 to 10 s apart, and
each part several times in a row, as soon as it is there again. Everything must be back within 90 s without a
hand, and a request that does not need what is dead must not fail. At the end `memserve up` itself is killed:
no process may be left after 10 s, and a new one must start on the same directory.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import redis

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.up import Up, is_engine
from memserve.client import CallFailed, Client
from memserve.demo import MODEL_DIR
from memserve.domain import Sampling
from memserve.embedded import marked_processes
from memserve.embedded.readiness import serves_memories

SEED = 9
WORKERS = 2
PAIRS = 30
# Of parts that are back in seconds.
QUICK_PAIRS = [("registry", "gateway", 1.0)]
IN_A_ROW = 5
GAP_MAX_S = 10.0
BACK_WITHIN_S = 90.0
NONE_LEFT_WITHIN_S = 10.0
START_TIMEOUT_S = 300.0
CALL_TIMEOUT_S = 30.0
PAUSE_S = 0.1
LOOK_S = 0.25
# A request that is under way as a part dies may end a little later than the part.
SLACK_S = 1.0
REGISTRY, CACHE, GATEWAY, FLEET, DRIVER = "registry", "cache", "gateway", "fleet", "fleet driver"
GCS, RAYLET, CONTROLLER, WORKER, ENGINE = "gcs", "raylet", "serve controller", "worker", "engine"
PARTS = (REGISTRY, CACHE, GATEWAY, FLEET, DRIVER, GCS, RAYLET, CONTROLLER, WORKER, ENGINE)
# With them all workers go.
ALL_WORKERS = {FLEET, DRIVER, RAYLET}
ANSWER, REMEMBER, SEARCH, LIST = "Generate", "Remember", "Search", "ListModules"
NEEDS = {
    ANSWER: {GATEWAY, *ALL_WORKERS},
    # A memory is acknowledged when it is in the registry's journal.
    REMEMBER: {GATEWAY, REGISTRY},
    SEARCH: {GATEWAY},
    LIST: {GATEWAY, REGISTRY},
}


@dataclass(frozen=True, slots=True)
class Request:
    """One that ended. Times are on the monotonic clock. failure: "" when it succeeded."""

    kind: str
    started_s: float
    ended_s: float
    failure: str


@dataclass
class Outage:
    """A part that was killed, until what needs it can go on; `until_s` is infinite before that. workers:
    those that were ready then.
    """

    part: str
    from_s: float
    workers: frozenset[str]
    until_s: float = float("inf")

    def excuses(self, request: Request) -> bool:
        overlaps = request.started_s <= self.until_s + SLACK_S and request.ended_s >= self.from_s
        needed = self.part in NEEDS[request.kind] or (
            request.kind == ANSWER and self.part in (WORKER, ENGINE)
        )
        return needed and overlaps


class WatchedUp(Up):
    """A `memserve up` whose parts are looked at."""

    def processes(self) -> dict[str, list[psutil.Process]]:
        """Of each part, the oldest first."""
        found: dict[str, list[psutil.Process]] = {part: [] for part in PARTS}
        for process in marked_processes(self.data):
            with contextlib.suppress(psutil.Error):
                part = part_of(process)
                if part:
                    found[part].append(process)
        return {part: sorted(each, key=lambda process: process.create_time()) for part, each in found.items()}

    def is_back(self) -> bool:
        """Everything runs, Ray's own processes too, and nothing of a generation that is being replaced is
        left.
        """
        found = self.processes()
        once = all(len(found[part]) == 1 for part in PARTS if part not in (WORKER, ENGINE))
        if (
            not once
            or len(found[ENGINE]) != WORKERS
            or not self.redis_answers(REGISTRY)
            or not self.redis_answers(CACHE)
        ):
            return False
        return serves_memories(self.address) and len(self.ready_workers()) == WORKERS

    def redis_answers(self, part: str) -> bool:
        with redis.Redis(unix_socket_path=str(self.data / part / "redis.sock"), socket_timeout=1.0) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False


def part_of(process: psutil.Process) -> str:
    """The part that a process of memserve is, or "" for one that is none of them."""
    name, command = process.name(), " ".join(process.cmdline())
    by_command = {
        "registry/redis.conf": REGISTRY,
        "cache/redis.conf": CACHE,
        "memserve gateway": GATEWAY,
        "workers --generation": DRIVER,
    }
    titles = {"ServeController": CONTROLLER, "ServeReplica": WORKER}
    if is_engine(process):
        return ENGINE
    if name in ("gcs_server", "raylet"):
        return GCS if name == "gcs_server" else RAYLET
    for text, part in {**by_command, **titles, "memserve workers": FLEET}.items():
        if text in command or text in name:
            return part
    return ""


@dataclass
class Asking:
    """Clients that ask without a pause, one thread for each kind of request."""

    address: str
    requests: list[Request] = field(default_factory=list)
    _ending: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Asking:
        numbers = itertools.count()
        calls: dict[str, Callable[[Client], object]] = {
            ANSWER: lambda client: client.generate("Hello.", sampling=Sampling(max_tokens=8)),
            REMEMBER: lambda client: client.remember(
                "supervision", f"The code of station {next(numbers)} is 4071."
            ),
            SEARCH: lambda client: client.search(["supervision"], "station"),
            LIST: lambda client: client.modules.all(),
        }
        with Client(self.address) as client:
            calls[REMEMBER](client)  # there is something to search
        for kind, call in calls.items():
            thread = threading.Thread(target=self._ask, args=(kind, call))
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, kind: str, call: Callable[[Client], object]) -> None:
        while not self._ending.is_set():
            # A new one after a failure: its channel connects at once.
            with Client(self.address, timeout_s=CALL_TIMEOUT_S) as client:
                failure = ""
                while not failure and not self._ending.is_set():
                    started_s = time.monotonic()
                    try:
                        call(client)
                    except CallFailed as error:
                        failure = str(error)
                    self.requests.append(Request(kind, started_s, time.monotonic(), failure))
                    self._ending.wait(PAUSE_S)


@dataclass
class Trial:
    """What was killed, and what became of it. back_s: from the last kill until everything was back; None: it
    was not in time.
    """

    what: str
    parts: tuple[str, ...]
    from_s: float
    outages: list[Outage] = field(default_factory=list)
    back_s: float | None = None
    until_s: float = 0.0

    def failed(self, requests: Sequence[Request], trials: Sequence[Trial]) -> list[Request]:
        """Of the requests that began in it, those that failed though they needed nothing that was dead: one
        may end in the next trial.
        """
        own = [
            request
            for request in requests
            if request.failure and self.from_s <= request.started_s < self.until_s
        ]
        outages = [outage for trial in trials for outage in trial.outages]
        return [request for request in own if not any(outage.excuses(request) for outage in outages)]


class Run:
    """Kills parts of one `memserve up` and waits for them."""

    def __init__(self, up: WatchedUp) -> None:
        self.up = up
        self.trials: list[Trial] = []

    def pair(self, first: str, second: str, gap_s: float) -> None:
        report(f"{first}, then {second} {gap_s:.1f} s later")
        trial = Trial(f"{first}, {second}", (first, second), time.monotonic())
        with self._tried(trial):
            self.kill(first, trial)
            self._look_for(gap_s, trial)
            self.kill(second, trial)

    def in_a_row(self, part: str, times: int) -> None:
        report(f"{part}, {times} times in a row")
        trial = Trial(f"{part} × {times}", (part,) * times, time.monotonic())
        with self._tried(trial):
            for _ in range(times):
                self.kill(part, trial)

    def kill(self, part: str, trial: Trial) -> None:
        """Kill it, as soon as it is there."""
        deadline_s = time.monotonic() + BACK_WITHIN_S
        while not (found := self.up.processes()[part]):
            if time.monotonic() > deadline_s:
                return
            self._look_for(LOOK_S, trial)
        # The older worker, and the engine of the younger one.
        victim = found[-1] if part == ENGINE else found[0]
        workers = self.up.ready_workers()
        trial.outages.append(Outage(part, time.monotonic(), workers))
        with contextlib.suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
            victim.kill()
            victim.wait(5)

    @contextlib.contextmanager
    def _tried(self, trial: Trial) -> Iterator[None]:
        yield
        killed_s = time.monotonic()
        while time.monotonic() - killed_s < BACK_WITHIN_S + 30.0:
            self._look_for(LOOK_S, trial)
            if all(outage.until_s < float("inf") for outage in trial.outages) and self.up.is_back():
                trial.back_s = time.monotonic() - killed_s
                break
        trial.until_s = time.monotonic()
        report(f"  back after {trial.back_s:.1f} s" if trial.back_s is not None else "  NOT BACK")
        self.trials.append(trial)

    def _look_for(self, seconds: float, trial: Trial) -> None:
        """Let time pass, and see which outages are over."""
        until_s = time.monotonic() + seconds
        while True:
            open_outages = [outage for outage in trial.outages if outage.until_s == float("inf")]
            if open_outages:
                serving, workers = serves_memories(self.up.address), self.up.ready_workers()
                lost_both = sum(outage.part in (WORKER, ENGINE) for outage in trial.outages) >= WORKERS
                for outage in open_outages:
                    # Those that die may count as ready for a moment still.
                    new_worker = bool(workers - outage.workers)
                    over = {
                        REGISTRY: self.up.redis_answers(REGISTRY),
                        GATEWAY: serving,
                        # One worker that is left goes on; both killed are an outage until one is back.
                        WORKER: new_worker or not lost_both,
                        ENGINE: new_worker or not lost_both,
                    }.get(outage.part, new_worker if outage.part in ALL_WORKERS else True)
                    # Readiness is said a moment after the fact.
                    if over and time.monotonic() - outage.from_s > 2 * SLACK_S:
                        outage.until_s = time.monotonic()
            if time.monotonic() >= until_s:
                return
            time.sleep(min(LOOK_S, max(0.0, until_s - time.monotonic())))


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
        "--pairs", type=int, help=f"so many pairs (default: {PAIRS}, with --quick {len(QUICK_PAIRS)})"
    )
    options.add_argument(
        "--in-a-row", type=int, help=f"each part so many times in a row (default: {IN_A_ROW}, with --quick 0)"
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
    folder = Path(tempfile.mkdtemp(prefix="memserve-sup-"))
    try:
        trials, requests, figures = measure(pairs, in_a_row, folder, start_again=not chosen.quick)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
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
        Bar("trials", len(trials), at_least=len(pairs) + (len(PARTS) if in_a_row else 0)),
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
        bars, {"rows": rows, "median_back_s": median, "requests": len(requests), "up": figures}, chosen.json
    )


if __name__ == "__main__":
    sys.exit(main())
