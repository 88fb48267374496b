"""Messages of `StatusService`."""

from __future__ import annotations

from memserve.client.values import Status, WorkerStatus
from memserve.client.wire.modules import place_of
from memserve.domain import ReindexProgress
from memserve.pb.v1 import status_pb2 as pb


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
