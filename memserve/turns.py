"""Turns at what all tenants share.

While one tenant asks for a thousand things, another tenant waits for at most one of them.
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
# A tenant that sent a request within this time counts when the places are shared out.
RECENT_S = 10.0
TENANTS_MAX = 10_000

Share = Callable[[int, int], int]
"""How many places one tenant may hold, from the number of all places and the number of active tenants."""


class Turns:
    """Places that tenants hold one after the other. It belongs to one event loop.

    A free place goes to the tenant that holds the fewest places. Among equals it goes to the tenant that has
    had the least time: a tenant whose calls take ten times as long gets a tenth as many turns. Within a
    tenant, first come, first served.

    Source: start-time fair queueing (Goyal, Vin and Cheng 1996). The cost is the time that a place was held.
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
        """what: as refusals name it.

        places: how many places there are at first.
        share: a result below 1 counts as 1.
        now_s: the clock; None for the event loop's.
        """
        self.places = places
        """How many places there are. It may be changed. `hand_out` is called after that."""
        self._what = what
        self._share = share
        self._waiting_per_tenant = waiting_per_tenant
        self._now_s = now_s
        self._held: Counter[str] = Counter()
        # No queue in it is empty. The order decides between tenants that have had as much time: the tenant
        # that has waited longest for a turn comes first.
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        # Seconds that each tenant has had. A new tenant starts where the others are, at `_reached_s`.
        self._had_s: dict[str, float] = {}
        self._reached_s = 0.0
        # When the held places were taken: for each tenant the sum over its places.
        self._since_s: dict[str, float] = {}
        self._lately = Lately(RECENT_S)

    @property
    def held(self) -> int:
        """How many places are held."""
        return self._held.total()

    def waiting(self, tenant: str) -> int:
        """How many of the tenant's calls wait for a place."""
        return len(self._waiting.get(tenant, ()))

    def others_ask(self, tenant: str) -> bool:
        """Whether another tenant holds a place, waits for a place, or was active lately."""
        return self._lately.others(tenant) or any(name != tenant for name in (*self._held, *self._waiting))

    @contextlib.asynccontextmanager
    async def of(self, tenant: str) -> AsyncIterator[None]:
        """Wait for a place, and hold it.

        Raises QuotaExceeded when too many of the tenant's calls wait already.
        """
        await self.take(tenant)
        try:
            yield
        finally:
            self.give(tenant)

    async def take(self, tenant: str) -> None:
        """Wait for a place, as `of`. The caller calls `give` afterwards, unless this raises."""
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
                self.give(tenant)  # the place was given at the moment of the cancellation
            elif tenant in self._waiting:
                with contextlib.suppress(ValueError):
                    self._waiting[tenant].remove(turn)
                if not self._waiting[tenant]:
                    del self._waiting[tenant]
            raise

    def give(self, tenant: str) -> None:
        """Give a place back."""
        # It does not matter which of the tenant's places ends: the sum of their times is the same.
        since_s = self._since_s[tenant] / self._held[tenant]
        self._had_s[tenant] = self._had_s.get(tenant, self._reached_s) + max(0.0, self._clock() - since_s)
        self._since_s[tenant] -= since_s
        self._held[tenant] -= 1
        if not self._held[tenant]:
            del self._held[tenant], self._since_s[tenant]
        self._see(tenant)
        self.hand_out()

    def hand_out(self) -> None:
        """Give free places to waiting tenants. The caller calls it after a change of `places`."""
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
            1, self._share(self.places, self._active())
        )

    def _active(self) -> int:
        """How many tenants hold a place, wait for a place, or were active lately."""
        return len({*self._held, *self._waiting, *self._lately.tenants})

    def _see(self, tenant: str) -> None:
        self._lately.see(tenant, self._clock())


class FairThreads:
    """Threads for one kind of blocking work. Tenants take turns at them.

    asyncio's default threads are not used. All kinds of work would share them, so that one stalled server
    would stop all of it.
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
        """Run `work` on a thread in the tenant's turn.

        Work that is cancelled before its turn never runs. Work that has begun runs to its end.

        Raises QuotaExceeded when too many of the tenant's calls wait, and what `work` raises.
        """
        return await asyncio.wrap_future(await self.begin(tenant, work))

    async def begin(self, tenant: str, work: Callable[[], T]) -> ThreadFuture[T]:
        """As `run`, but returns when the work has begun."""
        begun = await self.begin_next(tenant, lambda: work)
        assert begun is not None
        return begun

    async def begin_next(
        self, tenant: str, choose: Callable[[], Callable[[], T] | None]
    ) -> ThreadFuture[T] | None:
        """As `begin`, for work that is chosen when the tenant's turn has come, on the event loop.

        choose: None when there is no work any more. Then this returns None too.
        """
        await self.turns.take(tenant)
        loop = asyncio.get_running_loop()

        def ended(_: ThreadFuture[T]) -> None:
            # A thread that ends after its loop gives its place to nobody.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self.turns.give, tenant)

        try:
            work = choose()
            begun = None if work is None else self._threads.submit(work)
        except BaseException:
            self.turns.give(tenant)
            raise
        if begun is None:
            self.turns.give(tenant)
        else:
            begun.add_done_callback(ended)
        return begun

    def close(self, *, wait: bool = False) -> None:
        """Work that has not begun never begins.

        wait: whether to wait for work that has begun.
        """
        self._threads.shutdown(wait=wait, cancel_futures=True)


async def on_own_thread(work: Callable[[], T]) -> T:
    """Run `work` on a new thread. This is for work that happens once, at a start or at an end."""
    thread = ThreadPoolExecutor(1, "memserve-once")
    try:
        return await asyncio.get_running_loop().run_in_executor(thread, work)
    finally:
        thread.shutdown(wait=False)


def leave_one(places: int, tenants: int) -> int:
    """One tenant may hold all places except one. The last place is free for the next tenant."""
    return places - 1
