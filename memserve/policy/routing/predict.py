"""How long a worker would take to the first token of a request's answer."""

from __future__ import annotations

from dataclasses import dataclass

from memserve.domain import ModulePlace
from memserve.policy.routing.snapshot import WorkerSnapshot

NEW_WORKER_TOKENS_PER_S = 2_000.0
"""Prefill speed of a worker that has not measured its own yet. Workers are only compared by it; no request is
admitted or refused by it. Eviction has a figure of its own, see `policy/kv/eviction.py`."""


@dataclass(frozen=True, slots=True)
class RoutingCosts:
    """Seconds that a worker is charged for, besides the computing of the prompt."""

    fetch_tokens_per_s: float = 100_000.0
    """How fast KV arrives from Redis."""
    adapter_load_s: float = 0.2
    """An adapter that the engine does not hold. The charge is more than the loading takes: another adapter
    has to leave for it, and will have to be loaded again."""
    adapter_swap_s: float = 0.005
    """An adapter that is in the engine's host memory and needs a slot of the device."""
    slot_wait_s: float = 0.1
    """Each adapter that must leave a slot before the request's adapter gets one."""
    expert_load_s: float = 0.5
    """A logit expert that the engine does not hold."""
    step_s: float = 0.002
    """Each request that the worker decodes already. The new request shares every step of the engine with
    them."""


def predict_ttft_s(worker: WorkerSnapshot, prompt_tokens: int, costs: RoutingCosts) -> float:
    """Seconds until `worker` would stream the first token of a prompt of `prompt_tokens`."""
    speed = worker.prefill_tokens_per_s or NEW_WORKER_TOKENS_PER_S
    fetched = max(worker.shared_tokens - worker.held_tokens, 0)
    computed = max(prompt_tokens - worker.held_tokens - fetched, 0)
    return (
        (worker.pending_prefill_tokens + computed) / speed
        # Tokens that are computed sooner than they arrive from Redis are computed.
        + fetched / max(costs.fetch_tokens_per_s, speed)
        + worker.running * costs.step_s
        + _adapter_s(worker.adapter, costs)
        + worker.adapters_ahead * costs.slot_wait_s
        + (0.0 if worker.expert is ModulePlace.DEVICE else costs.expert_load_s)
    )


def _adapter_s(place: ModulePlace, costs: RoutingCosts) -> float:
    match place:
        case ModulePlace.DEVICE:
            return 0.0
        case ModulePlace.HOST:
            return costs.adapter_swap_s
    return costs.adapter_load_s
