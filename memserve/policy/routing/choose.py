"""Which worker a request goes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memserve.policy.routing.predict import RoutingCosts, predict_ttft_s
from memserve.policy.routing.snapshot import WorkerSnapshot


@dataclass(frozen=True, slots=True)
class RoutingChoice:
    """The chosen worker, and why."""

    worker_id: str
    predicted_ttft_s: float
    expected_cached_tokens: int
    reason: str
    """One line for a person."""


def choose_worker(
    workers: Sequence[WorkerSnapshot], prompt_tokens: int, costs: RoutingCosts
) -> RoutingChoice | None:
    """The worker with the least predicted TTFT; None when there is no worker.

    Of two workers with the same prediction the one with fewer running requests is chosen, then the first by
    id.
    """
    if not workers:
        return None
    predicted_s = {worker.worker_id: predict_ttft_s(worker, prompt_tokens, costs) for worker in workers}
    best = min(workers, key=lambda worker: (predicted_s[worker.worker_id], worker.running, worker.worker_id))
    cached = max(best.held_tokens, best.shared_tokens)
    where = "its own memory" if best.held_tokens >= best.shared_tokens else "Redis"
    reason = f"least predicted TTFT of {len(workers)}: {cached} of {prompt_tokens} tokens cached"
    if cached:
        reason += f" in {where}"
    reason += f", {best.pending_prefill_tokens} tokens queued, {best.running} running"
    return RoutingChoice(best.worker_id, predicted_s[best.worker_id], cached, reason)
