"""What a gateway makes of a worker's report, and of what it has sent since."""

from __future__ import annotations

import math
import time
from typing import cast

import pytest

from memserve.domain import WorkerLease
from memserve.domain.worker_calls import EngineState, StepCosts, WorkerCalls, WorkerState
from memserve.gateway.workers.calls import _state
from memserve.gateway.workers.pooled_worker import PooledWorker, Sent
from memserve.gateway.workers.report import UNKNOWN, reported
from memserve.pb.worker.v1 import worker_pb2 as pb
from memserve.policy.routing.load import BUCKETS

COSTS = StepCosts(0.01, 1e-3, 1e-7, 1e-3, 1e-6, 2.0)
LEASE = WorkerLease(
    worker_id="w", address="", metrics_address="", pid=0, model="m", model_digest="m", tokenizer_digest="t",
    namespace="n", block_tokens=32, blocks_per_chunk=1, max_context_tokens=1000, max_concurrent=4,
    started_s=0.0,
)  # fmt: skip


def test_a_report_is_what_routing_reads() -> None:
    engine = EngineState(COSTS, {1: (0.5, 0.25)}, 0.3, 0.2, 3, 900, 5000, 7, 1234)
    load = reported("w", WorkerState(engine=engine), now_s=10.0)
    assert (load.prefill_s, load.seat_s, load.answers, load.kv_tokens) == (0.3, 0.2, 3, 900)
    assert (load.free_tokens, load.requests, load.queued_tokens) == (5000, 7, 1234)
    assert load.waiting.total_s == 0.75
    assert load.waiting.before_s(1, 10.5) == 0.5
    assert load.costs.prefill_s(0, 100) == pytest.approx(0.1, rel=0.01)


def test_a_worker_that_says_nothing_of_its_engine_is_taken_for_a_slow_one() -> None:
    load = reported("w", WorkerState(running=2, waiting=1, pending_prefill_tokens=4000), now_s=0.0)
    assert load.costs is UNKNOWN
    assert (load.prefill_s, load.answers, load.requests) == (2.0, 2, 3)


def test_what_was_sent_since_the_report_is_added_and_what_the_report_has_is_not() -> None:
    worker = PooledWorker(LEASE, cast(WorkerCalls, None))
    with (
        worker.serving("t", "known", Sent(100, 1, math.inf, 1.0)),
        worker.serving("t", "on its way", Sent(200, 1, math.inf, 2.0)),
        worker.serving("t", "long ago", Sent(400, 1, math.inf, 4.0, at_s=time.monotonic() - 60)),
    ):
        assert worker.report.queued_tokens == 700
        worker.hear(WorkerState(engine=EngineState(COSTS, recent=frozenset({"known"}))), time.monotonic())
        assert (worker.report.queued_tokens, worker.report.waiting.total_s) == (200, 2.0)
    assert not worker.sent


def test_a_report_that_cannot_be_true_does_no_harm() -> None:
    costs = pb.StepCosts(step_s=0.01, token_s=1e-3, step_limit_s=1.0)
    wrong = pb.EngineState(
        costs=costs, prefill_s=math.nan, seat_s=-1.0, answers=-5, kv_tokens=-1, requests=-1, queued_tokens=-9,
        waiting=[
            pb.WaitingSeconds(band=1, buckets=[math.inf, math.nan, -3.0, 0.5] + [1.0] * 100),
            pb.WaitingSeconds(band=-1, buckets=[1.0]),
            pb.WaitingSeconds(band=10_000, buckets=[1.0]),
        ],
    )  # fmt: skip
    load = reported("w", _state(pb.WorkerState(engine=wrong)), now_s=0.0)
    assert (load.prefill_s, load.seat_s, load.answers, load.requests, load.queued_tokens) == (0, 0, 0, 0, 0)
    assert load.waiting.total_s == 0.5 + BUCKETS - 4


@pytest.mark.parametrize(
    "costs",
    [
        pb.StepCosts(),
        pb.StepCosts(token_s=math.nan, step_limit_s=1.0),
        pb.StepCosts(token_s=1e-3, step_limit_s=1.0, answer_s=-1.0),
        pb.StepCosts(token_s=1e-3),
    ],
)
def test_costs_that_are_none_are_not_used(costs: pb.StepCosts) -> None:
    assert _state(pb.WorkerState(engine=pb.EngineState(costs=costs))).engine is None
