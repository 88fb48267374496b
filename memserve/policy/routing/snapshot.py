"""What is known of a worker when a request arrives."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from memserve.domain import ModulePlace
from memserve.domain.kinds import LoadCosts


@dataclass(frozen=True, slots=True)
class PlacedModule:
    """A module of the request, on one worker."""

    place: ModulePlace
    costs: LoadCosts
    """Of the module's kind."""
    ahead: int = 0
    """As `slots_ahead` counts them."""


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
    modules: tuple[PlacedModule, ...] = ()
    """The request's modules, as the worker has them."""


def slots_ahead(digest: str, under_way: Collection[str], slots: int) -> int:
    """How many modules must leave a slot before a request on `digest` gets one.

    An engine's batch has at most as many adapters as the device has slots. Requests on the same adapter share
    its slot.

    under_way: digests of the modules in slots that the worker's requests use.
    """
    return 0 if digest in under_way else max(len(under_way) + 1 - slots, 0)
