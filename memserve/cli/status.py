"""`memserve status`: what runs, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType

from memserve.cli.options import Call, gateway_command
from memserve.cli.terminal import coloured
from memserve.client import Status, WorkerStatus

TEMPLATE_SOURCES = {
    "setting": "the template of recall_template",
    "model": "the model's own template",
    "default": "memserve's template",
}


@gateway_command(timeout_s=10)
def status(call: Call) -> None:
    """Show the model, the workers and the memories."""
    now = call.client.status()
    call.show(now, text=Group(*status_lines(now)))


def status_lines(now: Status) -> Iterator[RenderableType]:
    yield (
        f"memserve {now.version}, model {now.model} ({now.model_digest[:12]}), "
        f"{now.max_context_tokens} tokens of context"
    )
    redis = "ok" if now.redis_ok else "not answering"
    vector_store = "ok" if now.vector_store_ok else "not answering"
    yield f"Redis {redis}, vector store {vector_store}, {now.modules} modules, {now.memories} memories"
    ordered = f", searches put in order by {now.reranker}" if now.reranker else ""
    yield f"memories embedded by {now.embedder}{ordered}"
    if (step := now.reindexing) is not None:
        yield f"embedding memories by {step.embedder}: {step.memories_done} of {step.memories_total}"
    if now.recall_template:
        source = TEMPLATE_SOURCES.get(now.recall_template, now.recall_template)
        yield f"passages put into prompts by {source} ({now.recall_template_digest[:12]})"
    if now.prompt_changes:
        yield f"for the model's chat template {now.prompt_changes}"
    if now.lost_memories:
        damage = f": {now.lost_memories} of these memories are lost; `memserve restore` brings back a backup"
        yield coloured("the vector store is damaged", "bold red", damage)
    if now.short_disk:
        yield coloured(
            f"{now.short_disk} is nearly full", "bold red", ": changes are refused until there is room"
        )
    if now.forecast_mape:
        yield (
            f"predicted time to first token: {100 * now.forecast_mape:.0f} % off on average, "
            f"{100 * now.forecast_bias:+.0f} % bias, {100 * now.forecast_coverage:.0f} % within the interval"
        )
    for worker in now.workers:
        yield from worker_lines(worker)


def worker_lines(worker: WorkerStatus) -> Iterator[RenderableType]:
    ready = "ready" if worker.ready else "not ready"
    yield f"{worker.worker_id}  {ready}, {worker.running} running, {worker.waiting} waiting"
    modules = ", ".join(f"{digest[:12]} ({place})" for digest, place in worker.modules.items()) or "none"
    yield (
        f"  {worker.known_blocks} KV blocks, {worker.prefill_tokens_per_s:.0f} prefill tokens/s, modules: "
        f"{modules}"
    )
    if not worker.shares_kv:
        failure = ": what it stored at its start came back different; see its log"
        yield coloured("  does not share KV", "bold red", failure)
    if worker.limits:
        yield f"  {worker.limits}"
    yield f"  gRPC {worker.address}, metrics {worker.metrics_address}/metrics, pid {worker.pid}"
