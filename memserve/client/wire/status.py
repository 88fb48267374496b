"""Messages of `StatusService`."""

from __future__ import annotations

from memserve.client.values import Status, WorkerStatus
from memserve.client.wire.modules import place_of
from memserve.domain import ReindexProgress
from memserve.domain.ladder import (
    LadderAction,
    LadderBudget,
    LadderDecision,
    LadderReport,
    LadderStep,
    LadderUse,
    Rung,
)
from memserve.pb.v1 import status_pb2 as pb

RUNGS: dict[int, Rung] = {getattr(pb, f"RUNG_{rung.name}"): rung for rung in Rung.known()}
ACTIONS: dict[int, LadderAction] = {
    getattr(pb, f"LADDER_ACTION_{action.name}"): action for action in LadderAction.known()
}


def ladder_of(value: pb.GetLadderResponse) -> LadderReport:
    return LadderReport(
        value.mode,
        value.at_s,
        LadderBudget(value.budget.resident_bytes, value.budget.make_s),
        _use_of(value.use),
        tuple(map(_step_of, value.steps)),
    )


def _step_of(value: pb.LadderStep) -> LadderStep:
    decision = LadderDecision(
        value.namespace,
        ACTIONS.get(value.action, LadderAction.UNKNOWN),
        RUNGS.get(value.from_rung, Rung.UNKNOWN),
        RUNGS.get(value.to_rung, Rung.UNKNOWN),
        value.reason,
        _use_of(value.before),
        _use_of(value.after),
        value.makes_room_for,
    )
    return LadderStep(decision, value.outcome)


def _use_of(value: pb.LadderUse) -> LadderUse:
    return LadderUse(value.resident_bytes, value.make_s)


def status_of(value: pb.GetStatusResponse) -> Status:
    return Status(
        version=value.version,
        model=value.model,
        model_digest=value.model_digest,
        max_context_tokens=value.max_context_tokens,
        workers=tuple(_worker_of(worker) for worker in value.workers),
        redis_ok=value.redis_ok,
        vector_store_ok=value.vector_store_ok,
        modules=value.modules,
        memories=value.memories,
        lost_memories=value.lost_memories,
        waiting_writes=value.waiting_writes,
        short_disk=value.short_disk,
        embedder=value.embedder,
        forecast_mape=value.forecasts.mape,
        forecast_bias=value.forecasts.bias,
        forecast_coverage=value.forecasts.coverage,
        recall_template=value.prompts.recall_template,
        recall_template_digest=value.prompts.recall_template_digest,
        prompt_changes=value.prompts.changes,
        reranker=value.reranker,
        reindexing=_reindexing_of(value.reindexing) if value.HasField("reindexing") else None,
    )


def _reindexing_of(value: pb.Reindexing) -> ReindexProgress:
    return ReindexProgress(value.memories_done, value.memories_total, value.embedder)


def _worker_of(value: pb.WorkerStatus) -> WorkerStatus:
    return WorkerStatus(
        worker_id=value.worker_id,
        address=value.address,
        metrics_address=value.metrics_address,
        pid=value.pid,
        ready=value.ready,
        running=value.running,
        waiting=value.waiting,
        known_blocks=value.known_blocks,
        prefill_tokens_per_s=value.prefill_tokens_per_s,
        modules={module.digest: place_of(module.place) for module in value.modules},
        shares_kv=value.shares_kv,
        limits=value.limits,
    )
