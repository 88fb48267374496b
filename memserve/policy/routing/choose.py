"""Where a request goes: the worker with the least predicted time to first token. Pure; the simulator runs it
too.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from memserve.domain import ModulePlace

# Until a worker has measured its own speed. Only the comparison of workers depends on it, not admission.
ASSUMED_PREFILL_TOKENS_PER_S = 2_000.0


@dataclass(frozen=True, slots=True)
class RoutingCosts:
    """What the prediction charges beside prefill.

    fetch_tokens_per_s: how fast KV comes from Redis. adapter_load_s: for an adapter that the engine does not
    hold; more than the loading takes, because what leaves for it must come back. adapter_swap_s: for one in
    its host memory. slot_wait_s: for each adapter ahead of the request's. expert_load_s: for a logit expert
    that the engine does not hold. step_s: for each request that the worker already decodes (it shares every
    step with them).
    """

    fetch_tokens_per_s: float = 100_000.0
    adapter_load_s: float = 0.2
    adapter_swap_s: float = 0.005
    slot_wait_s: float = 0.1
    expert_load_s: float = 0.5
    step_s: float = 0.002


@dataclass(frozen=True, slots=True)
class WorkerSnapshot:
    """What is known of a worker when the request arrives.

    held_tokens: of this prompt, in the worker's own KV memory. shared_tokens: of this prompt, in Redis.
    pending_prefill_tokens: prompt tokens of other requests that it has yet to compute. adapter, expert: where
    it has the request's LoRA and its logit expert (DEVICE without one). adapters_ahead: as the function of
    that name says.
    """

    worker_id: str
    running: int
    pending_prefill_tokens: int
    held_tokens: int
    shared_tokens: int
    prefill_tokens_per_s: float
    adapter: ModulePlace
    expert: ModulePlace = ModulePlace.DEVICE
    adapters_ahead: int = 0


@dataclass(frozen=True, slots=True)
class RoutingChoice:
    """The chosen worker and why, in one line for a person."""

    worker_id: str
    predicted_ttft_s: float
    expected_cached_tokens: int
    reason: str


def predict_ttft_s(worker: WorkerSnapshot, prompt_tokens: int, costs: RoutingCosts) -> float:
    """Seconds until `worker` would stream the first token of a prompt of `prompt_tokens`."""
    speed = worker.prefill_tokens_per_s or ASSUMED_PREFILL_TOKENS_PER_S
    fetched = max(worker.shared_tokens - worker.held_tokens, 0)
    computed = max(prompt_tokens - worker.held_tokens - fetched, 0)
    return (
        (worker.pending_prefill_tokens + computed) / speed
        + fetched / max(costs.fetch_tokens_per_s, speed)  # what computes sooner than it loads is computed
        + worker.running * costs.step_s
        + _adapter_s(worker.adapter, costs)
        + worker.adapters_ahead * costs.slot_wait_s
        + (0.0 if worker.expert is ModulePlace.DEVICE else costs.expert_load_s)
    )


def adapters_ahead(adapter: str, under_way: Collection[str], slots: int) -> int:
    """How many adapters must leave a slot before a request on `adapter` gets one: an engine's batch has no
    more adapters than slots.

    under_way: those of the worker's requests, by digest. Requests on the same adapter share its slot.
    """
    return 0 if adapter in under_way else max(len(under_way) + 1 - slots, 0)


def _adapter_s(place: ModulePlace, costs: RoutingCosts) -> float:
    match place:
        case ModulePlace.DEVICE:
            return 0.0
        case ModulePlace.HOST:
            return costs.adapter_swap_s
    return costs.adapter_load_s


def choose_worker(
    workers: Sequence[WorkerSnapshot], prompt_tokens: int, costs: RoutingCosts
) -> RoutingChoice | None:
    """The worker with the least predicted TTFT; equal ones are told apart by fewer running requests, then by
    id.

    Returns None when there is no worker.
    """
    if not workers:
        return None
    predicted = {w.worker_id: predict_ttft_s(w, prompt_tokens, costs) for w in workers}
    best = min(workers, key=lambda w: (predicted[w.worker_id], w.running, w.worker_id))
    cached = max(best.held_tokens, best.shared_tokens)
    where = "its own memory" if best.held_tokens >= best.shared_tokens else "Redis"
    reason = f"least predicted TTFT of {len(workers)}: {cached} of {prompt_tokens} tokens cached"
    if cached:
        reason += f" in {where}"
    reason += f", {best.pending_prefill_tokens} tokens queued, {best.running} running"
    return RoutingChoice(best.worker_id, predicted[best.worker_id], cached, reason)
