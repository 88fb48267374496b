"""How long a worker would take to the first token of a request's answer."""

from __future__ import annotations

from dataclasses import dataclass

from memserve.domain import ModulePlace
from memserve.policy.routing.snapshot import PlacedModule, WorkerSnapshot

NEW_WORKER_TOKENS_PER_S = 2_000.0
"""Prefill speed of a worker that has not measured its own yet. Workers are only compared by it; no request is
admitted or refused by it. Eviction has a figure of its own, see `policy/kv/eviction.py`."""


@dataclass(frozen=True, slots=True)
class RoutingCosts:
    """Seconds that a worker is charged for, besides the computing of the prompt."""

    fetch_tokens_per_s: float = 100_000.0
    """How fast KV arrives from Redis."""
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
        + sum(module_s(module) for module in worker.modules)
    )


def module_s(module: PlacedModule) -> float:
    """Seconds until the worker can use a module of the request."""
    where_s = {ModulePlace.DEVICE: 0.0, ModulePlace.HOST: module.costs.swap_s}
    return where_s.get(module.place, module.costs.load_s) + module.ahead * module.costs.slot_wait_s
