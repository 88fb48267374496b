"""Turns at what all tenants share: while one asks for a thousand things, another waits for one of them at
most.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future as ThreadFuture
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from memserve.errors import QuotaExceeded
from memserve.policy.sharing.fairness import Lately

T = TypeVar("T")
WAITING_PER_TENANT = 128
RETRY_AFTER_S = 1.0
# A tenant that has asked within this time counts for the share of the others.
RECENT_S = 10.0
TENANTS_MAX = 10_000

Share = Callable[[int, int], int]
"""Places in all, and tenants that ask, to the places that one tenant may hold."""


class Turns:
    """Places that tenants hold one after the other. One event loop only.

    A free place goes to the tenant that holds the fewest, and among equals to the one that has had the least
    time: one whose calls take ten times as long gets a tenth as many turns. Within a tenant, first come,
    first served. Source: start-time fair queueing (Goyal, Vin and Cheng 1996), with the time that a place was
    held as its cost.
    """

    def __init__(
        self,
        what: str,
        places: int,
        *,
        share: Share = lambda places, tenants: places,
        waiting_per_tenant: int = WAITING_PER_TENANT,
        now_s: Callable[[], float] | None = None,
    ) -> None:
        """what: as refusals name it. share: never below 1 in effect. now_s: the clock; None: the event
        loop's.
        """
        self.places = places
        self._what = what
        self._share = share
        self._waiting_per_tenant = waiting_per_tenant
        self._now_s = now_s
        self._held: Counter[str] = Counter()
        # No queue here is empty. Of tenants with as much time the one that has waited longest for a turn
        # comes first.
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        # Seconds that each tenant has had; who comes anew starts where the others are, at `_reached_s`.
        self._had_s: dict[str, float] = {}
        self._reached_s = 0.0
        # Of the places that are held, since when: by tenant the sum over its places.
        self._since_s: dict[str, float] = {}
        self._lately = Lately(RECENT_S)

    @property
    def held(self) -> int:
        """Places that somebody holds."""
        return self._held.total()

    def waiting(self, tenant: str) -> int:
        return len(self._waiting.get(tenant, ()))

    def others_ask(self, tenant: str) -> bool:
        """Whether another tenant holds a place, waits for one, or was here lately."""
        return self._lately.others(tenant) or any(name != tenant for name in (*self._held, *self._waiting))

    @contextlib.asynccontextmanager
    async def of(self, tenant: str) -> AsyncIterator[None]:
        """Hold a place; waits for one. Raises QuotaExceeded when too many of the tenant's wait already."""
        await self.take(tenant)
        try:
            yield
        finally:
            self.give(tenant)

    async def take(self, tenant: str) -> None:
        """As `of`; `give` is due afterwards, and only then."""
        self._see(tenant)
        if tenant not in self._waiting and self._may_hold(tenant):
            self._begin(tenant)
            return
        queue = self._waiting.setdefault(tenant, deque())
        if len(queue) >= self._waiting_per_tenant:
            raise QuotaExceeded(
                f"{self._what} that wait for tenant {tenant}", self._waiting_per_tenant, RETRY_AFTER_S
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(tenant)  # The place was given in the moment of the cancellation.
            elif tenant in self._waiting:
                with contextlib.suppress(ValueError):
                    self._waiting[tenant].remove(turn)
                if not self._waiting[tenant]:
                    del self._waiting[tenant]
            raise

    def give(self, tenant: str) -> None:
        """Give a place back."""
        # Of its places, which one does not matter: the sum of their times is the same.
        since_s = self._since_s[tenant] / self._held[tenant]
        self._had_s[tenant] = self._had_s.get(tenant, self._reached_s) + max(0.0, self._clock() - since_s)
        self._since_s[tenant] -= since_s
        self._held[tenant] -= 1
        if not self._held[tenant]:
            del self._held[tenant], self._since_s[tenant]
        self._see(tenant)
        self.hand_out()

    def hand_out(self) -> None:
        """Give the free places to those that wait. For whoever changes `places`."""
        while allowed := [tenant for tenant in self._waiting if self._may_hold(tenant)]:
            tenant = min(allowed, key=lambda name: (self._held[name], self._time_of(name)))
            queue = self._waiting[tenant]
            turn = queue.popleft()
            if queue:
                self._waiting.move_to_end(tenant)
            else:
                del self._waiting[tenant]
            if not turn.done():
                self._begin(tenant)
                turn.set_result(None)

    def _begin(self, tenant: str) -> None:
        self._reached_s = max(self._reached_s, self._time_of(tenant))
        self._had_s[tenant] = self._time_of(tenant)
        self._held[tenant] += 1
        self._since_s[tenant] = self._since_s.get(tenant, 0.0) + self._clock()
        if len(self._had_s) > TENANTS_MAX:
            self._had_s = {
                name: had_s
                for name, had_s in self._had_s.items()
                if had_s > self._reached_s or name in self._held
            }

    def _time_of(self, tenant: str) -> float:
        return max(self._had_s.get(tenant, 0.0), self._reached_s)

    def _clock(self) -> float:
        return self._now_s() if self._now_s is not None else asyncio.get_running_loop().time()

    def _may_hold(self, tenant: str) -> bool:
        return self.held < self.places and self._held[tenant] < max(
            1, self._share(self.places, self._asking())
        )

    def _asking(self) -> int:
        """Tenants that hold a place, wait for one, or have been here lately."""
        return len({*self._held, *self._waiting, *self._lately.tenants})

    def _see(self, tenant: str) -> None:
        self._lately.see(tenant, self._clock())


class FairThreads:
    """Threads of their own for one kind of blocking work, which tenants take turns at.

    No work here waits for asyncio's default threads, which everything would share: one stalled server would
    stop it all.
    """

    def __init__(
        self,
        name: str,
        threads: int,
        *,
        share: Share = lambda places, tenants: places,
        waiting_per_tenant: int = WAITING_PER_TENANT,
    ) -> None:
        self.turns = Turns(f"{name} calls", threads, share=share, waiting_per_tenant=waiting_per_tenant)
        self._threads = ThreadPoolExecutor(threads, f"memserve-{name}")

    async def run(self, tenant: str, work: Callable[[], T]) -> T:
        """Run it on a thread in the tenant's turn. What is cancelled before its turn never runs; what has
        begun runs to its end.

        Raises QuotaExceeded when too many of the tenant's wait, and as `work`.
        """
        return await asyncio.wrap_future(await self.begin(tenant, work))

    async def begin(self, tenant: str, work: Callable[[], T]) -> ThreadFuture[T]:
        """The same, not waiting for its end."""
        await self.turns.take(tenant)
        loop = asyncio.get_running_loop()

        def ended(_: ThreadFuture[T]) -> None:
            # A thread that ends after its loop gives its place to nobody.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self.turns.give, tenant)

        try:
            begun = self._threads.submit(work)
        except BaseException:
            self.turns.give(tenant)
            raise
        begun.add_done_callback(ended)
        return begun

    def close(self, *, wait: bool = False) -> None:
        """What has not begun never does. wait: for what has."""
        self._threads.shutdown(wait=wait, cancel_futures=True)


async def on_own_thread(work: Callable[[], T]) -> T:
    """Run it on a thread that is there for this alone: what happens once, at a start or an end."""
    thread = ThreadPoolExecutor(1, "memserve-once")
    try:
        return await asyncio.get_running_loop().run_in_executor(thread, work)
    finally:
        thread.shutdown(wait=False)


def leave_one(places: int, tenants: int) -> int:
    """One tenant may hold all places but one, which is free for whoever comes next."""
    return places - 1
