"""The requests that wait in front of an engine: in which order they go, and which cannot be served in time.

Within a band of priority, tenants take turns at the engine's tokens, and within a turn the order is earliest
deadline first. When the order makes a request late, the dearest of those that go before it is
refused: the most requests are then on time (Moore 1968, "An n job, one machine sequencing algorithm").

It lies in the worker's process, where there is one queue however many gateways there are: docs/routing.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from memserve.policy.routing.promises import Promises
from memserve.policy.sharing.fading import Fading

T = TypeVar("T")

LEAST_MARGIN = 0.95
MARGIN_UNDER_LOAD = 0.15
WAIT_AT_FULL_LOAD = 0.3
"""The part of their time that requests have waited when the margin is at its largest."""
SMOOTHING = 0.05
PROMISED_BAND = 1
"""A request that comes again when it was told to goes in this band at least, before the others of it."""
LATELY_S, FORGOTTEN_S, FORGOTTEN_TOKENS = 10.0, 0.01, 1.0
QUANTUM_TOKENS = 32_768
"""A second of an 8B model's engine on one H200."""


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
    mark: int = 0
    """What it is known by when it comes again."""
    promised: bool = False
    """It was refused before, and has come again when it was told to."""

    def order_s(self, now_s: float) -> float:
        """The next time that it can still be served by: its wish, and after that its deadline."""
        return self.due_s if now_s + self.own_s <= self.due_s < self.deadline_s else self.deadline_s


def left_to(tenant: str, band: int, served: Mapping[tuple[str, int], float]) -> float:
    """The part of the engine that is left to a tenant in a band: by higher bands, and by other tenants of the
    band, which may not have more than their equal share of it.

    served: seconds of the engine within LATELY_S, by tenant and band.
    """
    above = sum(had for (_, other), had in served.items() if other < band) / LATELY_S
    others = {name: had / LATELY_S for (name, other), had in served.items() if other == band}
    others.pop(tenant, None)
    of_band = max(1.0 - above, 0.0)
    return max(of_band - sum(others.values()), of_band / (1 + len(others)))


class WaitingRoom(Generic[T]):
    """The queue of one engine. Pure: the caller has the clock and says what the engine is doing."""

    def __init__(
        self, shares: Mapping[int, float] | None = None, quantum_tokens: float = QUANTUM_TOKENS
    ) -> None:
        """shares: by band, the part of the engine's prompt tokens that it gets whatever waits above it.

        quantum_tokens: tenants take turns at so many.
        """
        self._waiting: list[Waiting[T]] = []
        # Uncached tokens by tenant. They decide who goes after the others: a tenant that was quiet is ahead
        # of one that was not, and no share is saved for longer than LATELY_S.
        self._had: Fading[str] = Fading(LATELY_S, FORGOTTEN_TOKENS)
        self._quantum_tokens = quantum_tokens
        # By tenant: in quanta, how much more than the others it would have had.
        self._excess: dict[str, int] = {}
        self._pressure = 0.0
        self._band_shares = dict(shares or {})
        self._owed = dict.fromkeys(self._band_shares, 0.0)
        self._promises = Promises()
        # Seconds of the engine by tenant and band, and of all that was offered by band.
        self._served: Fading[tuple[str, int]] = Fading(LATELY_S, FORGOTTEN_S)
        self._offered: Fading[int] = Fading(LATELY_S, FORGOTTEN_S)

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
        if self._promises.redeem(item.tenant, item.band, item.mark, now_s):
            item.promised, item.band = True, min(item.band, PROMISED_BAND)
        self._waiting.append(item)
        self._offered.count(item.band, item.own_s, now_s)
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
            self._had.count(item.tenant, item.tokens, now_s)
            self._pay(item)
            self._served.count((item.tenant, item.band), item.own_s, now_s)
            span_s = max(min(item.due_s, item.deadline_s) - item.arrived_s, 1e-3)
            self._pressure += SMOOTHING * (min((now_s - item.arrived_s) / span_s, 1.0) - self._pressure)
            return item, late
        return None, late

    def offered(self, now_s: float) -> float:
        """The part of the engine's time that requests have asked for lately, the refused ones too."""
        return sum(self._offered.sums(now_s).values()) / LATELY_S

    def remove(self, item: Waiting[T]) -> None:
        """Its caller has gone away."""
        self._waiting.remove(item)

    def refuse_late(self, now_s: float, engine_s: float) -> list[Waiting[T]]:
        """Refuse until nobody is late."""
        self._sort(now_s)
        refused: list[Waiting[T]] = []
        margin, excess = self.margin, self._excess
        while True:
            after_s, dearest, dearest_key = engine_s, None, (0, 0, False, 0.0)
            for item in self._waiting:
                after_s += item.own_s
                key = (item.band, excess[item.tenant], not item.promised, item.own_s)
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
        left = left_to(item.tenant, item.band, self._served.sums(now_s))
        return self._promises.make(
            item.tenant, item.band, item.mark, own_s=item.own_s, now_s=now_s, ahead_s=ahead_s, left=left
        )

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
        """By band, then by tenants' turns, and then by deadline."""
        lately = self._had.sums(now_s)
        had = {item.tenant: lately.get(item.tenant, 0.0) for item in self._waiting}
        if len(had) <= 1:
            self._excess = dict.fromkeys(had, 0)
            self._waiting.sort(key=lambda item: (item.band, not item.promised, item.order_s(now_s)))
            return
        quantum = self._quantum_tokens
        self._waiting.sort(key=lambda item: (item.band, not item.promised, item.order_s(now_s)))
        turns: dict[int, int] = {}
        for item in self._waiting:
            turns[id(item)] = int(had[item.tenant] / quantum)
            had[item.tenant] += item.tokens
        least = min(had.values())
        self._excess = {tenant: int((tokens - least) / quantum) for tenant, tokens in had.items()}
        # Stable: within a turn it stays as it is.
        self._waiting.sort(key=lambda item: (item.band, turns[id(item)]))
