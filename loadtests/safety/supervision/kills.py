"""Parts are killed, and everything has to come back."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import psutil

from loadtests.harness.figures import report
from loadtests.safety.supervision.asking import Request
from loadtests.safety.supervision.parts import (
    ALL_WORKERS,
    ANSWER,
    ENGINE,
    GATEWAY,
    NEEDS,
    REGISTRY,
    WORKER,
    WORKERS,
    WatchedUp,
)
from memserve.embedded.readiness import serves_memories

BACK_WITHIN_S = 90.0
LOOK_S = 0.25
# A request that is under way as a part dies may end a little later than the part.
SLACK_S = 1.0


@dataclass
class Outage:
    """A part was killed, and what needs the part cannot go on yet. Times are on the monotonic clock."""

    part: str
    from_s: float
    workers: frozenset[str]
    """Workers that were ready when the part was killed."""
    until_s: float = float("inf")
    """When what needs the part could go on; infinite before that."""

    def excuses(self, request: Request) -> bool:
        overlaps = request.started_s <= self.until_s + SLACK_S and request.ended_s >= self.from_s
        needed = self.part in NEEDS[request.kind] or (
            request.kind == ANSWER and self.part in (WORKER, ENGINE)
        )
        return needed and overlaps


@dataclass
class Trial:
    """What was killed, and what became of it."""

    what: str
    parts: tuple[str, ...]
    from_s: float
    outages: list[Outage] = field(default_factory=list)
    back_s: float | None = None
    """From the last kill until everything was back. None: not everything was back in time."""
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
        while not (alive := self.up.processes()[part]):
            if time.monotonic() > deadline_s:
                return
            self._look_for(LOOK_S, trial)
        # The older worker, and the engine of the younger one.
        victim = alive[-1] if part == ENGINE else alive[0]
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
