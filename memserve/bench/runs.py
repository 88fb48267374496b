"""Runs and sweeps: a cold state before each run, one target, the figures, and the knee."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from memserve.bench.ceiling import Ceiling, Units, hit_ceiling, token_units, word_units
from memserve.bench.figures import Figures, figures_of
from memserve.bench.generator import Generator, Snapshot, Target
from memserve.bench.grpc_target import GrpcTarget
from memserve.bench.http_target import HttpTarget
from memserve.bench.knee import Knee, knee_over, next_rates
from memserve.bench.rows import Row
from memserve.bench.scenario import Scenario
from memserve.bench.trace import Arrival
from memserve.bench.workload import Plan, make_plan
from memserve.client import AsyncClient, CallFailed, TlsFiles
from memserve.errors import UsageError

MAX_RATE_PER_S = 10_000.0
MAX_SWEEP_REQUESTS = 1_000_000
SETTLED_S = 0.5
"""Between two runs."""
STORES = 8
"""Memories that are stored at the same time."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where requests go."""

    address: str
    """host:port of the gateway's gRPC port."""
    api_key: str = ""
    http_url: str = ""
    """Requests go to this HTTP server. Empty: over gRPC."""
    tls: TlsFiles | None = None
    """For both ports."""


@dataclass(frozen=True, slots=True)
class Choices:
    """What is run. Rates: None for the scenario's own."""

    scenario: Scenario
    rates_per_s: tuple[float, ...] = ()
    """Empty: one run at the scenario's rate."""
    search: bool = False
    """Look for the knee from the scenario's rate on, without given rates."""
    seeds: tuple[int, ...] = (0,)
    salt: str = ""
    """What every prompt begins with. Empty: a new one for each run, so that no cache knows the prompts."""
    model_dir: Path | None = None
    """For a hit ceiling in tokens. None: in words."""

    @property
    def is_sweep(self) -> bool:
        return self.search or len(self.rates_per_s) > 1


@dataclass(frozen=True, slots=True)
class Ran:
    """One run."""

    rate_per_s: float | None
    """As asked for. None: the scenario's, or the trace's."""
    seed: int
    salt: str
    is_cold: bool
    """Whether the salt was new."""
    figures: Figures
    ceiling: Ceiling
    cut_prompts: int
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Results:
    """All runs, by rate and seed, and the knee. knee: None without a sweep, or where a run is missing."""

    runs: tuple[Ran, ...]
    knee: Knee | None
    stopped: bool
    """By the user."""

    @property
    def is_valid(self) -> bool:
        return all(not run.figures.invalid for run in self.runs)

    @property
    def is_complete(self) -> bool:
        return not self.stopped and all(run.figures.is_complete for run in self.runs)


@dataclass(frozen=True, slots=True)
class Watchers:
    """Who is told how it goes."""

    said: Callable[[str], None]
    """A line for a person."""
    seen: Callable[[Snapshot], None]
    """The run under way, some times a second."""


class Bench:
    """Runs what is chosen. stop: set it to end early; what there is then comes back."""

    def __init__(
        self,
        place: Place,
        choices: Choices,
        trace: Sequence[Arrival],
        watchers: Watchers,
        stop: asyncio.Event,
    ) -> None:
        self._place = place
        self._choices = choices
        self._trace = trace
        self._watchers = watchers
        self._stop = stop

    async def run(self) -> Results:
        """Raises UsageError, and CallFailed when the memories of a run cannot be stored."""
        choices, runs = self._choices, list[Ran]()
        # The generator ends a request itself, so that the reason is the same over gRPC and HTTP.
        timeout_s = choices.scenario.limits.timeout_s
        place = self._place
        async with AsyncClient(place.address, place.api_key, timeout_s + 5, tls=place.tls) as client:
            units, unit = self._units()

            def ceiling_of(plan: Plan) -> Ceiling:
                return hit_ceiling(plan.requests, units, unit)

            async def one(rate_per_s: float | None, seed: int) -> Ran:
                if runs:
                    await asyncio.sleep(SETTLED_S)
                self._watchers.said(_title(rate_per_s, seed, len(choices.seeds)))
                run = await self._one(client, rate_per_s, seed, ceiling_of)
                runs.append(run)
                return run

            await self._all(one)
        return Results(tuple(runs), self._knee(runs), self._stop.is_set())

    async def _all(self, one: Callable[[float | None, int], Awaitable[Ran]]) -> None:
        choices = self._choices
        rates: Sequence[float | None] = choices.rates_per_s or (None,)
        tried: list[tuple[float, float]] = []
        if choices.search:
            rates = [choices.scenario.arrivals.rate_per_s]
        while rates:
            for rate in rates:
                goodputs = []
                for seed in choices.seeds:
                    run = await one(rate, seed)
                    goodputs.append(run.figures.goodput)
                    # A generator that is too slow for this rate is too slow for a higher one.
                    if self._stop.is_set() or (choices.is_sweep and run.figures.invalid):
                        return
                if rate is not None:
                    tried.append((rate, min(goodputs)))
            rates = next_rates(tried, choices.scenario.goodput, MAX_RATE_PER_S) if choices.search else []

    async def _one(
        self,
        client: AsyncClient,
        rate_per_s: float | None,
        seed: int,
        ceiling_of: Callable[[Plan], Ceiling],
    ) -> Ran:
        choices = self._choices
        scenario = choices.scenario
        salt = choices.salt or secrets.token_hex(4)
        plan = make_plan(scenario, seed, salt, rate_per_s, self._trace)
        ceiling = ceiling_of(plan)
        async with self._remembered(client, plan), self._target(client, plan) as target:
            # The collector's pauses would be the generator's lateness.
            gc.collect()
            gc.freeze()
            generator = Generator(target, scenario.slo, scenario.limits, self._stop, self._watchers.seen)
            try:
                sending = await generator.run(plan.requests, plan.seconds)
            finally:
                gc.unfreeze()
        figures = figures_of(sending, scenario.slo, scenario.limits)
        return Ran(rate_per_s, seed, salt, not choices.salt, figures, ceiling, plan.cut_prompts, sending.rows)

    @contextlib.asynccontextmanager
    async def _target(self, client: AsyncClient, plan: Plan) -> AsyncGenerator[Target, None]:
        scenario = self._choices.scenario
        if not self._place.http_url:
            yield GrpcTarget(client, scenario, plan.namespace)
            return
        target = HttpTarget(
            self._place.http_url, self._place.api_key, scenario, plan.namespace, self._place.tls
        )
        try:
            await target.open()
            yield target
        finally:
            target.close()

    @contextlib.asynccontextmanager
    async def _remembered(self, client: AsyncClient, plan: Plan) -> AsyncGenerator[None, None]:
        """The plan's memories are in the run's own namespace while inside. Always over gRPC."""
        if not plan.namespace:
            yield
            return
        self._watchers.said(f"storing {len(plan.memories)} memories")
        stored: list[str] = []
        lanes = asyncio.Semaphore(STORES)

        async def store(text: str) -> None:
            async with lanes:
                stored.append((await client.remember(plan.namespace, text)).memory_id)

        async def forget(memory_id: str) -> None:
            async with lanes:
                await client.forget(plan.namespace, memory_id)

        try:
            await asyncio.gather(*map(store, plan.memories))
            yield
        finally:
            with contextlib.suppress(CallFailed):
                await asyncio.gather(*map(forget, list(stored)))

    def _units(self) -> tuple[Units, str]:
        """How prompts are counted for the hit ceiling."""
        if self._choices.model_dir is None:
            return word_units, "words"
        return token_units(self._choices.model_dir), "tokens"

    def _knee(self, runs: Sequence[Ran]) -> Knee | None:
        """None without a sweep, and where a rate lacks a seed."""
        choices = self._choices
        if not choices.is_sweep:
            return None
        seeds: dict[int, dict[float, float]] = {seed: {} for seed in choices.seeds}
        for run in runs:
            if run.rate_per_s is not None and run.figures.is_complete and not run.figures.invalid:
                seeds[run.seed][run.rate_per_s] = run.figures.goodput
        shared = set.intersection(*(set(points) for points in seeds.values()))
        if not shared:
            return None
        return knee_over(
            [{rate: points[rate] for rate in shared} for points in seeds.values()], choices.scenario.goodput
        )


def check_rates(rates_per_s: Sequence[float], seeds: int, scenario: Scenario) -> None:
    """Raises UsageError."""
    for rate in rates_per_s:
        if not 0 < rate <= MAX_RATE_PER_S:
            raise UsageError("--rates", f"{rate:g}: above 0 and at most {MAX_RATE_PER_S:g} a second")
    if len(set(rates_per_s)) < len(rates_per_s):
        raise UsageError("--rates", "each rate once")
    requests = sum(rates_per_s) * scenario.arrivals.seconds * seeds
    if requests > MAX_SWEEP_REQUESTS:
        rule = f"{requests:.0f} requests in all; at most {MAX_SWEEP_REQUESTS}, whose times are kept"
        raise UsageError("--rates", rule)


def _title(rate_per_s: float | None, seed: int, seeds: int) -> str:
    rate = "at the scenario's rate" if rate_per_s is None else f"at {rate_per_s:g}/s"
    return f"a run {rate}" + (f", seed {seed}" if seeds > 1 else "")
