"""What is known of a worker when a request arrives."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from memserve.domain import ModulePlace


@dataclass(frozen=True, slots=True)
class WorkerSnapshot:
    """One worker as one request sees it.

    Held and shared tokens count from the start of the request's prompt.
    """

    worker_id: str
    running: int
    """Requests under way on the worker."""
    pending_prefill_tokens: int
    """Prompt tokens of other requests that the worker still has to compute."""
    held_tokens: int
    """Tokens of this prompt in the worker's own KV memory."""
    shared_tokens: int
    """Tokens of this prompt in Redis, where every worker of this layout finds them."""
    prefill_tokens_per_s: float
    """As the worker measures it; 0 before its first measurement."""
    adapter: ModulePlace
    """Where the worker has the request's LoRA; DEVICE for a request without one."""
    expert: ModulePlace = ModulePlace.DEVICE
    """Where the worker has the request's logit expert; DEVICE for a request without one."""
    adapters_ahead: int = 0
    """As the function `adapters_ahead` counts them."""


def adapters_ahead(adapter: str, under_way: Collection[str], slots: int) -> int:
    """How many adapters must leave a slot before a request on `adapter` gets one.

    An engine's batch has at most as many adapters as the device has slots. Requests on the same adapter share
    its slot.

    under_way: digests of the adapters that the worker's requests use.
    """
    return 0 if adapter in under_way else max(len(under_way) + 1 - slots, 0)
