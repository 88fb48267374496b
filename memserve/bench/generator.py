"""The open-loop generator: every request leaves at its time, whatever became of those before."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from memserve.bench.rows import Heard, NotAnswered, Outcome, Row, ended_badly, judged
from memserve.bench.scenario import Limits, Slo
from memserve.bench.workload import Planned

SHOWN_EVERY_S = 0.5


class Target(Protocol):
    """A server, as the generator sees it."""

    async def ask(self, request: Planned, heard: Heard, clock: Callable[[], float]) -> None:
        """Return when the answer is whole. Raises NotAnswered.

        heard: takes what comes, with the times of `clock`.
        """


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run under way."""

    elapsed_s: float
    offered: int
    planned: int
    under_way: int
    outcomes: Counter[Outcome]


@dataclass(frozen=True, slots=True)
class Sending:
    """What a run has sent, and what it took."""

    rows: tuple[Row, ...]
    """By number; those whose time came."""
    planned: int
    planned_s: float
    elapsed_s: float
    cpu_s: float
    """Of the whole process."""


class Generator:
    """Sends one plan to one target. stop: set it to end the run before its time."""

    def __init__(
        self,
        target: Target,
        slo: Slo,
        limits: Limits,
        stop: asyncio.Event,
        progress: Callable[[Snapshot], None] = lambda snapshot: None,
    ) -> None:
        self._target = target
        self._slo = slo
        self._limits = limits
        self._stop = stop
        self._progress = progress
        self._rows: list[Row] = []
        self._outcomes: Counter[Outcome] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._began_s = 0.0

    async def run(self, requests: Sequence[Planned], planned_s: float) -> Sending:
        """planned_s: how long requests come."""
        cpu_s, self._began_s = time.process_time(), time.perf_counter()
        stopped = asyncio.create_task(self._stop.wait())
        offered, shown_s = 0, 0.0
        try:
            for request in requests:
                while (wait_s := request.due_s - self._now_s()) > 0 and not self._stop.is_set():
                    await asyncio.wait([stopped], timeout=min(wait_s, SHOWN_EVERY_S))
                    if self._now_s() - shown_s >= SHOWN_EVERY_S:
                        shown_s = self._now_s()
                        self._show(offered, len(requests))
                if self._stop.is_set():
                    break
                offered += 1
                self._send(request)
            while self._tasks and not self._stop.is_set():
                await asyncio.wait(
                    [stopped, *self._tasks], timeout=SHOWN_EVERY_S, return_when=asyncio.FIRST_COMPLETED
                )
                if self._now_s() - shown_s >= SHOWN_EVERY_S:
                    shown_s = self._now_s()
                    self._show(offered, len(requests))
        finally:
            stopped.cancel()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        self._show(offered, len(requests))
        rows = tuple(sorted(self._rows, key=lambda row: row.number))
        elapsed_s = self._now_s()
        return Sending(rows, len(requests), planned_s, elapsed_s, time.process_time() - cpu_s)

    def _now_s(self) -> float:
        return time.perf_counter() - self._began_s

    def _show(self, offered: int, planned: int) -> None:
        self._progress(Snapshot(self._now_s(), offered, planned, len(self._tasks), self._outcomes.copy()))

    def _send(self, request: Planned) -> None:
        if len(self._tasks) >= self._limits.max_outstanding:
            reason = f"{self._limits.max_outstanding} under way"
            self._keep(request, None, None, Outcome.SHED, reason, Heard())
            return
        task = asyncio.create_task(self._answered(request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answered(self, request: Planned) -> None:
        heard, sent_s = Heard(), self._now_s()
        ended_s: float | None = None
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                await self._target.ask(request, heard, self._now_s)
            ended_s = self._now_s()
            outcome, reason = judged(self._slo, request.due_s, ended_s, heard)
        except NotAnswered as error:
            ended_s = self._now_s()
            outcome, reason = ended_badly(error, heard), error.reason
        except TimeoutError:
            ended_s = self._now_s()
            outcome, reason = ended_badly(NotAnswered("timeout"), heard), "timeout"
        except asyncio.CancelledError:
            outcome, reason = Outcome.UNFINISHED, "the run was ended"
        except Exception as error:
            # A fault of the tool's own must not look like an answer.
            ended_s = self._now_s()
            outcome, reason = Outcome.FAILED, f"{type(error).__name__} in the generator"
        self._keep(request, sent_s, ended_s, outcome, reason, heard)

    def _keep(
        self,
        request: Planned,
        sent_s: float | None,
        ended_s: float | None,
        outcome: Outcome,
        reason: str,
        heard: Heard,
    ) -> None:
        self._outcomes[outcome] += 1
        self._rows.append(
            Row(
                number=request.number,
                intended_s=request.due_s,
                sent_s=sent_s,
                ended_s=ended_s,
                outcome=outcome,
                reason=reason,
                worker=heard.worker,
                session=request.session,
                turn=request.turn,
                module=request.module,
                prompt_tokens=heard.prompt_tokens,
                output_tokens=heard.output_tokens,
                cached_tokens=heard.cached_tokens,
                token_times_s=array("d", heard.token_times_s),
            )
        )
