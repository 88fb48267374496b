"""The requests that wait in front of an engine: in which order they go, and which cannot be served in time.

The order is earliest deadline first within a band of priority; tenants that had more than their share go
after the others of the band. When the order makes a request late, the dearest of those that go before it is
refused: the most requests are then on time (Moore 1968, "An n job, one machine sequencing algorithm").

It lies in the worker's process, where there is one queue however many gateways there are: docs/routing.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

LEAST_MARGIN = 0.95
MARGIN_UNDER_LOAD = 0.15
WAIT_AT_FULL_LOAD = 0.3
"""The part of their time that requests have waited when the margin is at its largest."""
SMOOTHING = 0.05
QUANTUM_TOKENS = 32_768
"""So many more tokens than the others a tenant may have had before it goes after them."""


@dataclass(slots=True)
class Waiting(Generic[T]):
    """A request that waits."""

    what: T
    tenant: str
    band: int
    """0 goes first."""
    deadline_s: float
    """For the first token."""
    own_s: float
    """Time of the engine that it needs."""
    tokens: int
    """Prompt tokens that the engine has to compute."""
    arrived_s: float


class Shares:
    """The uncached tokens that tenants have had and wait for. They decide who goes after the others.

    A tenant that comes back starts where the one with the least is: unused shares are not saved.
    Source: start-time fair queueing (Goyal, Vin and Cheng 1996).
    """

    def __init__(self) -> None:
        self._had: dict[str, float] = {}
        self._floor = 0.0

    def charge(self, tenant: str, tokens: float) -> None:
        """The tenant has had so many tokens."""
        self._had[tenant] = max(self._had.get(tenant, 0.0), self._floor) + tokens

    def over(self, waiting: Mapping[str, float]) -> frozenset[str]:
        """The tenants that would have had more than their share. waiting: the tokens that each waits for."""
        if not waiting:
            return frozenset()
        had = {tenant: max(self._had.get(tenant, 0.0), self._floor) for tenant in waiting}
        # Nobody who waits has had less. Tenants that had less and are away have lost it.
        self._floor = min(had.values())
        self._had = {tenant: tokens for tenant, tokens in self._had.items() if tokens > self._floor}
        claims = {tenant: had[tenant] + tokens for tenant, tokens in waiting.items()}
        limit = min(claims.values()) + QUANTUM_TOKENS
        return frozenset(tenant for tenant, claim in claims.items() if claim > limit)


class WaitingRoom(Generic[T]):
    """The queue of one engine. Pure: the caller has the clock and says what the engine is doing."""

    def __init__(self) -> None:
        self._waiting: list[Waiting[T]] = []
        self._shares = Shares()
        self._over: frozenset[str] = frozenset()
        self._pressure = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Waiting[T]]:
        return iter(self._waiting)

    @property
    def margin(self) -> float:
        """Times a prediction. It is careful under load, when a late answer has cost somebody else's."""
        return LEAST_MARGIN + MARGIN_UNDER_LOAD * min(1.0, self._pressure / WAIT_AT_FULL_LOAD)

    def offer(self, item: Waiting[T], now_s: float, engine_s: float) -> list[Waiting[T]]:
        """Let a request in. Returns those that are refused now, perhaps itself.

        engine_s: how long the engine is busy with the prompts that it has.
        """
        self._waiting.append(item)
        self._sort()
        return self._refuse(now_s, engine_s)

    def take(
        self, now_s: float, engine_s: float, may_go: Callable[[Waiting[T]], bool]
    ) -> tuple[Waiting[T] | None, list[Waiting[T]]]:
        """The next request for the engine, and those that are refused because they are late by now.

        may_go: whether the engine could begin with it now, and updates what it costs. The others are passed
        over.
        """
        late: list[Waiting[T]] = []
        for item in list(self._waiting):
            if not may_go(item):
                continue
            self._waiting.remove(item)
            if now_s + self.margin * (engine_s + item.own_s) > item.deadline_s:
                late.append(item)
                continue
            self._shares.charge(item.tenant, item.tokens)
            span_s = max(item.deadline_s - item.arrived_s, 1e-3)
            self._pressure += SMOOTHING * ((now_s - item.arrived_s) / span_s - self._pressure)
            self._sort()
            return item, late
        return None, late

    def _sort(self) -> None:
        waiting: dict[str, float] = {}
        for item in self._waiting:
            waiting[item.tenant] = waiting.get(item.tenant, 0.0) + item.tokens
        self._over = over = self._shares.over(waiting)
        self._waiting.sort(key=lambda item: (item.band, item.tenant in over, item.deadline_s))

    def _refuse(self, now_s: float, engine_s: float) -> list[Waiting[T]]:
        """Refuse until nobody is late."""
        refused: list[Waiting[T]] = []
        margin, over = self.margin, self._over
        while True:
            after_s, dearest, dearest_key = engine_s, None, (0, False, 0.0)
            for item in self._waiting:
                after_s += item.own_s
                key = (item.band, item.tenant in over, item.own_s)
                if dearest is None or key >= dearest_key:
                    dearest, dearest_key = item, key
                if now_s + margin * after_s > item.deadline_s:
                    break
            else:
                return refused
            assert dearest is not None
            self._waiting.remove(dearest)
            refused.append(dearest)
