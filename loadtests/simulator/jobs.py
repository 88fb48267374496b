"""What the simulated workers are, and the requests that they work on."""

from __future__ import annotations

import math
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from memserve.bench.trace import BLOCK_TOKENS, Arrival
from memserve.domain.kinds import LoadCosts
from memserve.policy.routing.costs import EngineCosts
from memserve.policy.routing.load import WorkerLoad

ADAPTER = LoadCosts(load_s=0.3, swap_s=0.3, slot_wait_s=3.0)
H200_8B = EngineCosts(7e-3, 30e-6, 1.3e-9, 30e-6, 36e-9, step_limit_s=0.09)


@dataclass(frozen=True, slots=True)
class Machine:
    """What every worker of the fleet is. By default an 8B model on one H200, derived from data sheets."""

    costs: EngineCosts = H200_8B
    device_blocks: int = 1650
    host_blocks: int = 1950
    redis_blocks: int = 3900
    """This worker's part of the shared tier."""
    fetch_tokens_per_s: float = 2.5e9 / (128 << 10)
    sequences: int = 256
    slots: int = 0
    """Adapters in a batch. 0: no adapters."""


@dataclass(slots=True)
class Job:
    """A request on its way."""

    number: int
    arrival: Arrival
    gateway: int
    deadline_s: float
    offers: int = 0
    predicted_s: float = 0.0
    """When the first token comes, by the gateway's forecast at the last offer."""
    learned_s: float = 0.0
    """The part of it that is a correction by earlier errors."""
    offered_s: float = 0.0
    alone_s: float = 0.0
    """Of the engine, if it had nothing else to do."""
    own_s: float = 0.0
    """Beside what it answers."""
    fetch_blocks: int = 0
    fetch_to: int = 0
    """Leading blocks that are here when the fetch has ended."""
    fetch_from_s: float = 0.0
    hits: int = 0
    cached_tokens: int = 0
    left_s: float = 0.0
    """Of its prefill."""
    first_s: float = 0.0

    @property
    def full_blocks(self) -> tuple[int, ...]:
        return self.arrival.blocks[: self.arrival.prompt_tokens // BLOCK_TOKENS]

    @property
    def total_blocks(self) -> int:
        return math.ceil((self.arrival.prompt_tokens + self.arrival.output_tokens) / BLOCK_TOKENS)


@dataclass(slots=True)
class Report:
    """A worker's load, and its adapters. A gateway changes its own copy."""

    load: WorkerLoad
    adapters: AbstractSet[str]
    """In slots: a request on one of them loads nothing."""
    busy: AbstractSet[str]
    """That unfinished requests use, the waiting ones too."""


@dataclass(slots=True)
class Ended:
    """What a worker is done with after an event."""

    finished: list[Job] = field(default_factory=list)
    refused: list[Job] = field(default_factory=list)
