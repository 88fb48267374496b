"""Routing and streaming over workers in memory: the pipeline's steps 6 to 8. No port, no Redis, no Milvus."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest

from memserve.config import Settings
from memserve.domain import (
    GenerationRequest,
    Message,
    ModuleKind,
    ModuleUse,
    ModuleVersion,
    RecallOutcome,
    Role,
    Route,
    Sampling,
    Tenant,
    TextDelta,
    Usage,
    WeightFigures,
    WorkerLease,
)
from memserve.domain.kinds import KINDS
from memserve.errors import DeadlineExceeded, NoWorker, WorkerLost
from memserve.gateway.access.callers import Inflight
from memserve.gateway.access.token_quota import TokenQuota
from memserve.gateway.decisions import Decisions
from memserve.gateway.live import LiveRequests
from memserve.gateway.outcomes import OutcomeCounts, Outcomes
from memserve.gateway.pipeline import Pipeline
from memserve.gateway.provenance import Provenance
from memserve.gateway.steps.prompt import Prompt
from memserve.gateway.steps.recall import Recalled
from memserve.gateway.steps.resolve import ModuleUses
from memserve.gateway.steps.route import Router
from memserve.gateway.steps.stream import Answers
from memserve.gateway.workers.pool import WorkerPool
from memserve.kv.index import BlockIndex
from memserve.memory.answers.store import KeptAnswers
from memserve.memory.modules.memory import Resolved
from memserve.memory.texts.uses import UseLedger
from memserve.metrics.instruments import GatewayMetrics
from memserve.policy.routing.breaker import FAILURES, Breakers
from memserve.policy.routing.residuals import Residuals
from tests.contract.memory_worker import MemoryWorker
from tests.contract.scripted_worker import BLOCK_TOKENS, Script, ScriptedWorker
from tests.gateway.running import until

ANSWER_TOKENS = 4
PROMPT = list(range(100, 100 + 2 * BLOCK_TOKENS + 1))
TENANT = Tenant("alice", "salt")
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
TONE = ModuleVersion(
    module="tone",
    version=1,
    digest="a" * 64,
    kind=ModuleKind.LORA,
    base_digest="",
    rank=4,
    target_modules=(),
    size_bytes=1,
    created_s=0.0,
    author="",
    sources=(),
    parents=(),
    recipe="",
    notes="",
    figures=WeightFigures(0.0, 0.0, 0.0),
    probes_digest="",
)


async def nothing_taught(*_: object) -> tuple[()]:
    return ()


@dataclass
class MemoryFleet:
    """Workers w0, w1, and so on, and a pipeline that routes to them. Of equal workers, w0 comes first.

    It stands in for the registry, the module memory, the text memory and the cache.
    """

    modules_root: Path
    workers: list[ScriptedWorker]
    calls: dict[str, MemoryWorker] = field(init=False)
    metrics: GatewayMetrics = field(default_factory=GatewayMetrics)
    outcomes: OutcomeCounts = field(default_factory=OutcomeCounts)
    decisions: Decisions = field(default_factory=Decisions)
    residuals: Residuals = field(default_factory=Residuals)
    breakers: Breakers = field(default_factory=Breakers)

    def __post_init__(self) -> None:
        names = [f"w{number}" for number in range(len(self.workers))]
        self.calls = {
            name: MemoryWorker(worker, name) for name, worker in zip(names, self.workers, strict=True)
        }
        self.pool = WorkerPool(self, BlockIndex(), "tokenizer", lambda lease: self.calls[lease.worker_id])
        settings = Settings(routing_policy="least_ttft", routing_exploration=0.0)
        self.pipeline = Pipeline(
            settings=settings,
            inflight=Inflight(9, 9),
            live=LiveRequests(),
            metrics=self.metrics,
            check=lambda model, messages, tools: None,
            modules=self,
            uses=ModuleUses(),
            texts=SimpleNamespace(lost=lambda tenant, namespaces: 0),
            recall=self._recall,
            fit=self._fit,
            pool=self.pool,
            look_up=self._look_up,
            router=Router(self.pool, settings, self.residuals, self.breakers),
            answers=Answers(self.metrics, self.outcomes, self.decisions, self.residuals, self.breakers),
            tokens=TokenQuota("redis://localhost:1", 0),
            provenance=Provenance(
                KeptAnswers("redis://localhost:1", 0.0, lambda token_ids: ""), self.decisions, settings
            ),
            ledger=UseLedger("redis://localhost:1"),
            warm_pinned=SimpleNamespace(recalled=lambda request, tenant, version: None),
            taught=SimpleNamespace(outdated=nothing_taught),
        )

    async def live_workers(self) -> list[WorkerLease]:
        return [
            WorkerLease(
                worker_id=worker_id,
                address="",
                metrics_address="",
                pid=0,
                model="tiny",
                model_digest="model",
                tokenizer_digest="tokenizer",
                namespace="ab" * 32,
                block_tokens=BLOCK_TOKENS,
                blocks_per_chunk=1,
                max_context_tokens=512,
                max_concurrent=8,
                started_s=0.0,
            )
            for worker_id in self.calls
        ]

    async def resolve(self, *_: str) -> Resolved:
        return Resolved(TONE, "the only version")

    async def _recall(self, *_: object) -> Recalled:
        return Recalled(RecallOutcome.NOT_ASKED)

    async def _fit(self, *_: object) -> Prompt:
        return Prompt((), PROMPT, ANSWER_TOKENS)

    async def _look_up(self, *_: object) -> dict[object, object]:
        return {}

    def stream(self, *, module: str = "", deadline_s: float | None = None) -> AsyncIterator[object]:
        request = GenerationRequest(
            messages=(Message(Role.USER, "hello"),),
            sampling=Sampling(max_tokens=ANSWER_TOKENS),
            modules=(ModuleUse(module),) if module else (),
        )
        return self.pipeline.generate(request, TENANT, deadline_s)

    def counted(self, metric: str) -> float | None:
        return self.metrics.registry.get_sample_value(metric)


@contextlib.asynccontextmanager
async def fleet_of(modules_root: Path, *scripts: Script) -> AsyncIterator[MemoryFleet]:
    folder = modules_root / "modules" / TONE.digest
    folder.mkdir(parents=True)
    for name in KINDS[TONE.kind].files:
        (folder / name).touch()
    fleet = MemoryFleet(modules_root, [ScriptedWorker(modules_root, script) for script in scripts])
    await fleet.pool.start()
    try:
        await until(lambda: len(fleet.pool.ready(time.monotonic())) == len(scripts))
        yield fleet
    finally:
        await fleet.pool.close()


async def keep(stream: AsyncIterator[object], events: list[object]) -> None:
    """Also the events before a failure."""
    async for event in stream:
        events.append(event)


def routes(events: list[object]) -> list[str]:
    return [event.worker_id for event in events if isinstance(event, Route)]


@pytest.mark.parametrize(
    "script",
    [Script(fails_with=UNAVAILABLE), Script(ends_early_after=0), Script(fails_with=grpc.StatusCode.UNKNOWN)],
    ids=["gone", "ends early", "faulty"],
)
async def test_a_worker_that_fails_before_its_first_token_is_replaced(tmp_path: Path, script: Script) -> None:
    async with fleet_of(tmp_path, script, Script()) as fleet:
        events = [event async for event in fleet.stream()]
    assert routes(events) == ["w0", "w1"]
    *deltas, usage = [event for event in events if not isinstance(event, Route)]
    assert [event.token_ids for event in deltas if isinstance(event, TextDelta)] == [
        (501,),
        (502,),
        (503,),
        (501,),
    ]
    assert isinstance(usage, Usage)
    assert usage.output_tokens == ANSWER_TOKENS
    [failed], [answered] = fleet.calls["w0"].requests, fleet.calls["w1"].requests
    assert list(failed.token_ids) == list(answered.token_ids) == PROMPT
    assert fleet.counted("memserve_rerouted_total") == 1


@pytest.mark.parametrize(
    "script",
    [Script(fails_with=UNAVAILABLE, fails_after=2), Script(ends_early_after=2)],
    ids=["gone", "ends early"],
)
async def test_a_worker_that_fails_after_its_first_token_is_lost_with_the_answer(
    tmp_path: Path, script: Script
) -> None:
    events: list[object] = []
    async with fleet_of(tmp_path, script, Script()) as fleet:
        with pytest.raises(WorkerLost, match="w0"):
            await keep(fleet.stream(), events)
    assert routes(events) == ["w0"]
    assert sum(isinstance(event, TextDelta) for event in events) == 2
    assert not fleet.calls["w1"].requests
    assert fleet.counted("memserve_rerouted_total") == 0


async def test_a_module_that_a_worker_refuses_is_counted_and_another_worker_answers(tmp_path: Path) -> None:
    async with fleet_of(tmp_path, Script(), Script()) as fleet:
        fleet.workers[0].refuses[TONE.digest] = "no room"
        events = [event async for event in fleet.stream(module="tone")]
    assert routes(events) == ["w0", "w1"]
    assert fleet.outcomes.of(TONE.digest) == Outcomes(answered=1, refused=1)


async def test_a_failure_that_is_not_about_modules_counts_against_none(tmp_path: Path) -> None:
    busy = Script(fails_with=grpc.StatusCode.RESOURCE_EXHAUSTED)
    async with fleet_of(tmp_path, busy, Script(fails_with=UNAVAILABLE)) as fleet:
        with pytest.raises(NoWorker, match="as scripted"):
            async for _ in fleet.stream(module="tone"):
                pass
    assert fleet.outcomes.of(TONE.digest) == Outcomes()


async def test_a_worker_that_keeps_failing_is_left_alone_and_tried_again(tmp_path: Path) -> None:
    async with fleet_of(tmp_path, Script(fails_with=grpc.StatusCode.UNKNOWN), Script()) as fleet:
        failed = fleet.calls["w0"].requests

        async def ask() -> Route:
            await until(lambda: len(fleet.pool.ready(time.monotonic())) == 2)
            return [event async for event in fleet.stream() if isinstance(event, Route)][-1]

        for _ in range(30):
            route = await ask()
            assert route.worker_id == "w1"
        assert len(failed) == FAILURES
        assert "failed" in next(each.reason for each in route.excluded if each.worker_id == "w0")
        fleet.breakers._of["w0"].until_s = 0.0
        fleet.workers[0].script = Script()
        fleet.pool.workers["w1"].running = 100
        assert (await ask()).worker_id == "w0"
        assert fleet.breakers.open_s("w0", time.monotonic()) == 0


async def test_an_answer_that_its_caller_leaves_ends_in_the_worker_too(tmp_path: Path) -> None:
    async with fleet_of(tmp_path, Script(hangs_after=1)) as fleet:
        events = fleet.stream()
        route = await anext(events)
        assert isinstance(route, Route)
        await anext(events)
        await events.aclose()
        assert fleet.workers[0].cancelled == {route.request_id}
        assert fleet.pool.workers["w0"].running == 0


async def test_an_answer_ends_at_its_deadline_and_no_other_worker_is_asked(tmp_path: Path) -> None:
    async with fleet_of(tmp_path, Script(hangs_after=1), Script()) as fleet:
        with pytest.raises(DeadlineExceeded):
            async for _ in fleet.stream(deadline_s=time.monotonic() + 0.1):
                pass
        assert len(fleet.workers[0].cancelled) == 1
    assert not fleet.calls["w1"].requests
