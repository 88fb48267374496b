"""When a worker would stream the first token of a request, term by term."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from memserve.domain import ModulePlace
from memserve.domain.kinds import LoadCosts
from memserve.policy.routing.load import WorkerLoad


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request asks of any worker, as routing sees it."""

    prompt_tokens: int
    deadline_s: float
    """For the first token, on the caller's clock."""
    output_tokens: int = 0
    """At most."""
    band: int = 0
    """Of priority; 0 goes first."""
    session: str = ""


@dataclass(frozen=True, slots=True)
class PlacedModule:
    """A module of the request, on one worker."""

    place: ModulePlace
    costs: LoadCosts
    """Of the module's kind."""
    ahead: int = 0
    """As `slots_ahead` counts them."""


def slots_ahead(digest: str, busy: Collection[str], slots: int) -> int:
    """How many modules must leave a slot before a request on `digest` gets one.

    An engine's batch has at most as many adapters as the device has slots. Requests on the same adapter share
    its slot.

    busy: digests of the modules in slots that the worker's requests use.
    """
    return 0 if digest in busy else max(len(busy) + 1 - slots, 0)


@dataclass(frozen=True, slots=True)
class Held:
    """What one worker has of what the request needs. Tokens count from the start of the prompt."""

    held_tokens: int = 0
    """In the worker's own memory."""
    shared_tokens: int = 0
    """In Redis, where every worker of this layout finds them."""
    modules: tuple[PlacedModule, ...] = ()


@dataclass(slots=True)
class Forecast:
    """One worker's time to the first token, in seconds."""

    queue_s: float
    """The engine's prompts, and the waiting requests that go before this one."""
    slot_s: float
    """For a slot of an adapter."""
    room_s: float
    """For KV memory."""
    fetch_s: float
    """Until what comes from Redis is here. It passes beside the waiting, not after it."""
    prefill_s: float
    """The prompt itself, beside the answers that the engine gives meanwhile."""
    load_s: float
    """Of the request's modules."""
    learned_s: float
    """What forecasts for this worker were wrong by lately."""
    cached_tokens: int
    """Prompt tokens that are not computed."""
    computed_tokens: int

    @property
    def own_s(self) -> float:
        """What the request takes of the engine."""
        return self.prefill_s + self.load_s

    @property
    def wait_s(self) -> float:
        return max(self.queue_s + self.slot_s + self.room_s, self.fetch_s)

    @property
    def ttft_s(self) -> float:
        return max(self.wait_s + self.prefill_s + self.load_s + self.learned_s, 0.0)


def forecast(load: WorkerLoad, demand: Demand, held: Held, now_s: float, learned_s: float = 0.0) -> Forecast:
    """What `load` says about this request. Where it is older than now, its queue has shrunk since."""
    costs = load.costs
    engine_s = max(costs.drain_s(load.prefill_s, load.answers, load.kv_tokens), load.seat_s)
    queue_s = load.waiting.before_s(demand.band, demand.deadline_s) + engine_s
    if queue_s:
        queue_s = max(queue_s - (now_s - load.at_s), 0.0)
    if load.answers:  # half of the step that is under way
        queue_s += costs.fixed_s(load.answers, load.kv_tokens) / 2
    load_s = slot_s = 0.0
    for module in held.modules:
        slot_s += module.ahead * module.costs.slot_wait_s
        load_s += _loading_s(module)
    cached_tokens, fetch_s = tokens_to_fetch(load, held, queue_s + slot_s, now_s)
    needed = demand.prompt_tokens + demand.output_tokens - held.held_tokens
    room_s = 0.0
    if needed > load.free_tokens and load.released_tokens_per_s > 0:
        room_s = (needed - load.free_tokens) / load.released_tokens_per_s
    own_s = costs.prefill_s(cached_tokens, demand.prompt_tokens)
    return Forecast(
        queue_s=queue_s,
        slot_s=slot_s,
        room_s=room_s,
        fetch_s=fetch_s,
        prefill_s=costs.drain_s(own_s, load.answers, load.kv_tokens),
        load_s=load_s,
        learned_s=learned_s,
        cached_tokens=cached_tokens,
        computed_tokens=demand.prompt_tokens - cached_tokens,
    )


def tokens_to_fetch(load: WorkerLoad, held: Held, wait_s: float, now_s: float) -> tuple[int, float]:
    """Load or recompute.

    Returns how many leading tokens are not computed, and in how many seconds the last of them is here.

    What arrives while the request waits costs nothing. What would arrive later is fetched only where Redis
    sends all of it faster than the engine computes it.
    """
    here, speed = held.held_tokens, load.fetch_tokens_per_s
    missing = held.shared_tokens - here
    if missing <= 0 or speed <= 0:
        return max(here, 0), 0.0
    starts_s = max(load.fetch_free_s - now_s, 0.0)
    if missing / speed < load.costs.prefill_s(here, held.shared_tokens):
        return held.shared_tokens, starts_s + missing / speed
    in_time = min(missing, int((wait_s - starts_s) * speed)) if wait_s > starts_s else 0
    return here + in_time, starts_s + in_time / speed if in_time else 0.0


def misses(demand: Demand, ttft_s: float, now_s: float, margin: float) -> bool:
    """Whether a first token after `ttft_s` is taken for late. margin: times the forecast."""
    return margin * ttft_s > demand.deadline_s - now_s


def _loading_s(module: PlacedModule) -> float:
    """Seconds until the worker can use a module of the request that has a slot."""
    where_s = {ModulePlace.DEVICE: 0.0, ModulePlace.HOST: module.costs.swap_s}
    return where_s.get(module.place, module.costs.load_s)
