"""The requests that wait in front of an engine: in which order they go, and which cannot be served in time.

The order is earliest deadline first within a band of priority; tenants that had more than their share go
after the others of the band. When the order makes a request late, the dearest of those that go before it is
refused: the most requests are then on time (Moore 1968, "An n job, one machine sequencing algorithm").

It lies in the worker's process, where there is one queue however many gateways there are: docs/routing.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from memserve.policy.routing.promises import Promises

T = TypeVar("T")

LEAST_MARGIN = 0.95
MARGIN_UNDER_LOAD = 0.15
WAIT_AT_FULL_LOAD = 0.3
"""The part of their time that requests have waited when the margin is at its largest."""
SMOOTHING = 0.05
PROMISED_BAND = 1
"""A request that comes again when it was told to goes in this band at least, before the others of it."""
LATELY_S = 10.0
QUANTUM_TOKENS = 32_768
"""So many more tokens than the others a tenant may have had before it goes after them."""


@dataclass(slots=True, eq=False)
class Waiting(Generic[T]):
    """A request that waits. Times are on the caller's clock."""

    what: T
    tenant: str
    band: int
    """0 goes first."""
    deadline_s: float
    """For the first token. What cannot make it is refused."""
    own_s: float
    """Time of the engine that it needs."""
    tokens: int
    """Prompt tokens that the engine has to compute."""
    arrived_s: float
    due_s: float = math.inf
    """When the caller wishes for the first token, where it would rather have it late than not at all."""
    promised: bool = False
    """It was refused before, and has come again when it was told to."""

    def order_s(self, now_s: float) -> float:
        """The next time that it can still be served by: its wish, and after that its deadline."""
        return self.due_s if now_s + self.own_s <= self.due_s < self.deadline_s else self.deadline_s


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


class _Served:
    """The part of the engine that each band has had lately."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._at_s = 0.0

    def count(self, band: int, seconds: float, now_s: float) -> None:
        self._fade(now_s)
        self._seconds[band] = self._seconds.get(band, 0.0) + seconds

    def above(self, band: int, now_s: float) -> float:
        """The part of the bands that go before this one."""
        self._fade(now_s)
        return min(sum(had for other, had in self._seconds.items() if other < band) / LATELY_S, 1.0)

    def _fade(self, now_s: float) -> None:
        keep = math.exp(-max(now_s - self._at_s, 0.0) / LATELY_S)
        self._seconds = {band: had * keep for band, had in self._seconds.items()}
        self._at_s = now_s


class WaitingRoom(Generic[T]):
    """The queue of one engine. Pure: the caller has the clock and says what the engine is doing."""

    def __init__(self, shares: Mapping[int, float] | None = None) -> None:
        """shares: by band, the part of the engine's prompt tokens that it gets whatever waits above it."""
        self._waiting: list[Waiting[T]] = []
        self._shares = Shares()
        self._over: frozenset[str] = frozenset()
        self._pressure = 0.0
        self._band_shares = dict(shares or {})
        self._owed = dict.fromkeys(self._band_shares, 0.0)
        self._promises = Promises()
        self._served = _Served()

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
        if self._promises.redeem(item.tenant, item.band, item.own_s, now_s):
            item.promised, item.band = True, min(item.band, PROMISED_BAND)
        self._waiting.append(item)
        return self.refuse_late(now_s, engine_s)

    def take(
        self, now_s: float, engine_s: float, may_go: Callable[[Waiting[T]], bool]
    ) -> tuple[Waiting[T] | None, list[Waiting[T]]]:
        """The next request for the engine, and those that are refused because they are late by now.

        may_go: whether the engine could begin with it now, and updates what it costs. The others are passed
        over.
        """
        late: list[Waiting[T]] = []
        for item in self._by_turn():
            if not may_go(item):
                continue
            self._waiting.remove(item)
            if now_s + self.margin * (engine_s + item.own_s) > item.deadline_s:
                late.append(item)
                continue
            self._shares.charge(item.tenant, item.tokens)
            self._pay(item)
            self._served.count(item.band, item.own_s, now_s)
            span_s = max(min(item.due_s, item.deadline_s) - item.arrived_s, 1e-3)
            self._pressure += SMOOTHING * (min((now_s - item.arrived_s) / span_s, 1.0) - self._pressure)
            self._sort(now_s)
            return item, late
        return None, late

    def remove(self, item: Waiting[T]) -> None:
        """Its caller has gone away."""
        self._waiting.remove(item)

    def refuse_late(self, now_s: float, engine_s: float) -> list[Waiting[T]]:
        """Refuse until nobody is late."""
        self._sort(now_s)
        refused: list[Waiting[T]] = []
        margin, over = self.margin, self._over
        while True:
            after_s, dearest, dearest_key = engine_s, None, (0, False, False, 0.0)
            for item in self._waiting:
                after_s += item.own_s
                key = (item.band, not item.promised, item.tenant in over, item.own_s)
                if dearest is None or key >= dearest_key:
                    dearest, dearest_key = item, key
                if now_s + margin * after_s > item.deadline_s:
                    break
            else:
                return refused
            assert dearest is not None
            self._waiting.remove(dearest)
            refused.append(dearest)

    def worst(self) -> Waiting[T] | None:
        """The one to refuse where there are too many: of the lowest band the one that goes last."""
        return max(self._waiting, key=lambda item: (item.band, not item.promised), default=None)

    def promise(self, item: Waiting[T], now_s: float, engine_s: float) -> float:
        """When a request that is refused may come again, in seconds. Then it goes before others of its band.

        The promises of a band follow one another at the pace of the engine.
        """
        ahead_s = engine_s + sum(each.own_s for each in self._waiting if each.band <= item.band)
        left = 1.0 - self._served.above(item.band, now_s)
        return self._promises.make(item.tenant, item.band, item.own_s, now_s, ahead_s, left)

    def _by_turn(self) -> list[Waiting[T]]:
        """As sorted, but a band that is owed the tokens of its next request goes first."""
        if not any(self._owed.values()):
            return list(self._waiting)
        owed = [band for band, tokens in self._owed.items() if tokens > 0]
        first = [next((item for item in self._waiting if item.band == band), None) for band in owed]
        turn = [item for item in first if item is not None and self._owed[item.band] >= item.tokens]
        return [*turn, *(item for item in self._waiting if item not in turn)]

    def _pay(self, item: Waiting[T]) -> None:
        """Count the request's tokens against what the bands are owed. A band that nobody waits in is not."""
        if not self._band_shares:
            return
        waiting = {each.band for each in self._waiting}
        for band, share in self._band_shares.items():
            if band == item.band:
                self._owed[band] = max(self._owed[band] - item.tokens, 0.0)
            elif band in waiting:
                self._owed[band] += share * item.tokens
            else:
                self._owed[band] = 0.0

    def _sort(self, now_s: float) -> None:
        waiting: dict[str, float] = {}
        for item in self._waiting:
            waiting[item.tenant] = waiting.get(item.tenant, 0.0) + item.tokens
        self._over = over = self._shares.over(waiting)
        self._waiting.sort(
            key=lambda item: (item.band, not item.promised, item.tenant in over, item.order_s(now_s))
        )
