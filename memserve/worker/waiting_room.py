"""The waiting room of a worker: requests go to the engine when it has room for them.

The order and who is refused are `policy/routing/waiting_room.py`. This file has the clock and the callers.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from itertools import islice

from memserve.domain import Priority, RefusalReason
from memserve.domain.worker_calls import RECENT_REQUESTS_S, WorkerRequest
from memserve.errors import Overloaded
from memserve.policy.routing.engine_load import EngineLoad
from memserve.policy.routing.load import WaitingTime
from memserve.policy.routing.promises import mark_of
from memserve.policy.routing.scaling import demand
from memserve.policy.routing.waiting_room import Waiting, WaitingRoom
from memserve.policy.sharing.fairness import Lately, engine_share

WINDOW_S = 0.25
"""The engine gets the next request when it has less than this to compute."""
LOOK_S = 0.1
"""How often the room looks for requests that have become late, while some wait."""
RECENT_S = 10.0
"""A tenant that sent a request within this time counts when the seats are shared out."""
QUANTUM_S = 1.0
"""A tenant may have had so much more of the engine than the others before it goes after them."""
PRICED = 32
"""So many of the first in turn are priced again whenever the room looks."""
RECENT_MAX = 512
WAITING_MAX = 1024
WAITING_TOKENS_MAX = 8 << 20
SHARES = {Priority.LOW.band: 0.1}
BACKGROUND_PATIENCE_S = 2.0
"""A question of memserve's own that has waited so long goes beside the prompts of users."""
BACKGROUND_SHARE = 0.75
"""Of the seats, for those, while no user has asked within RECENT_S. Otherwise they have one seat."""
BACKGROUND_WAIT_S = 600.0

Item = Waiting["Turn"]
Cached = Callable[[], int]
"""Says how many leading tokens of a prompt need not be computed, as it is now."""


def as_expected(request: WorkerRequest) -> Cached:
    """What the gateway expected when it routed."""
    return lambda: request.cached_tokens


@dataclass(slots=True, eq=False)
class Turn:
    """A request, and when it may begin."""

    request: WorkerRequest
    begins: asyncio.Future[None]
    cached: Cached


class EngineRoom:
    """Where the requests of all gateways wait for one engine. It belongs to the event loop."""

    def __init__(
        self,
        load: EngineLoad,
        *,
        ttft_s: float,
        wait_s: float,
        cached_of: Callable[[WorkerRequest], Cached] = as_expected,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """ttft_s: the wish of a request without one. wait_s: the longest wait of one that may be late.

        cached_of: called once for a request. changed: called when a request comes or goes.
        """
        self.load = load
        self._ttft_s = ttft_s
        self._wait_s = wait_s
        self._cached_of = cached_of
        self._changed = changed
        self._room: WaitingRoom[Turn] = WaitingRoom(SHARES, QUANTUM_S * load.costs.prefill_tokens_per_s)
        self._lately = Lately(RECENT_S)
        self._came: deque[tuple[float, str]] = deque(maxlen=RECENT_MAX)
        self._user_s = -math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._leaving = False

    def __len__(self) -> int:
        return len(self._room)

    @property
    def waiting_tokens(self) -> int:
        """Prompt tokens that the waiting requests have to compute."""
        return sum(item.tokens for item in self._room)

    def demand(self, now_s: float) -> float:
        """What is asked of this worker, in workers."""
        return demand(self._room.offered(now_s), len(self.load) / self.load.seats)

    def recent(self, now_s: float) -> list[str]:
        """Ids of the requests that came a moment ago."""
        return [request_id for at_s, request_id in self._came if at_s > now_s - RECENT_REQUESTS_S]

    def waiting(self, now_s: float) -> WaitingTime:
        """The waiting seconds, for a report."""
        waiting = WaitingTime(now_s)
        for item in self._room:
            waiting.add(item.band, item.order_s(now_s), item.own_s)
        return waiting

    @contextlib.asynccontextmanager
    async def turn(self, request: WorkerRequest, timeout_s: float | None = None) -> AsyncIterator[None]:
        """Wait for the engine, and hold a seat in it.

        timeout_s: of the whole call. Raises Overloaded when the request is refused, at once or later.
        """
        turn = Turn(request, asyncio.get_running_loop().create_future(), self._cached_of(request))
        self.load.rest(time.monotonic())
        item = self._item(turn, timeout_s)
        self._offer(item)
        try:
            await turn.begins
        except BaseException:
            if item in list(self._room):
                self._room.remove(item)
                self._changed()
            elif turn.begins.done() and not turn.begins.cancelled() and turn.begins.exception() is None:
                self._ended(turn)  # it was let in at the moment of the cancellation
            raise
        try:
            yield
        finally:
            self._ended(turn)

    def advanced(self, request_id: str, tokens: int) -> None:
        """Tokens of an answer have come."""
        first = self.load.is_prompt(request_id)
        self.load.advanced(request_id, time.monotonic(), tokens)
        if first:
            self._let_in()

    def leave(self) -> None:
        """Let nobody in any more. What waits is refused, so that another worker takes it."""
        self._leaving = True
        for item in list(self._room):
            self._room.remove(item)
            self._refuse(item, RefusalReason.LEAVING, "this worker ends", time.monotonic())

    def _item(self, turn: Turn, timeout_s: float | None) -> Item:
        request, now_s = turn.request, time.monotonic()
        wish_s = self._ttft_s if request.first_token_s is None else request.first_token_s
        longest_s = BACKGROUND_WAIT_S if request.priority is Priority.BACKGROUND else self._wait_s
        hard = request.refuse_late and request.first_token_s is not None
        deadline_s = now_s + min(wish_s if hard else longest_s, math.inf if timeout_s is None else timeout_s)
        prompt_tokens, cached_tokens = len(request.token_ids), turn.cached()
        return Waiting(
            what=turn,
            tenant=request.tenant,
            band=request.priority.band,
            deadline_s=deadline_s,
            own_s=self.load.own_s(cached_tokens, prompt_tokens),
            tokens=max(prompt_tokens - cached_tokens, 1),
            arrived_s=now_s,
            due_s=math.inf if hard else now_s + wish_s,
            mark=mark_of(request.token_ids),
        )

    def _offer(self, item: Item) -> None:
        now_s = item.arrived_s
        self._lately.see(item.tenant, now_s)
        self._came.append((now_s, item.what.request.request_id))
        if item.what.request.priority is not Priority.BACKGROUND:
            self._user_s = now_s
        if self._leaving:
            self._refuse(item, RefusalReason.LEAVING, "this worker ends", now_s)
            return
        if not self._has_room_for(item):
            self._refuse(item, RefusalReason.QUEUE_FULL, "too many requests wait for this worker", now_s)
            return
        self._refuse_late(self._room.offer(item, now_s, self.load.busy_s(now_s)), item, now_s)
        self._let_in()
        if item.what.request.do_not_queue and not item.what.begins.done():
            self._room.remove(item)
            self._refuse(item, RefusalReason.WOULD_WAIT, "no engine can begin with it now", now_s)
        self._changed()

    def _has_room_for(self, item: Item) -> bool:
        """Whether it may wait. Where too much waits, the last in turn of a lower band makes room."""
        of_tenant = [each for each in self._room if each.tenant == item.tenant]
        tenants = len(self._lately.tenants)
        if len(of_tenant) >= engine_share(WAITING_MAX, tenants) or sum(
            each.tokens for each in of_tenant
        ) + item.tokens > engine_share(WAITING_TOKENS_MAX, tenants):
            return False
        while len(self._room) >= WAITING_MAX or self.waiting_tokens + item.tokens > WAITING_TOKENS_MAX:
            worst = self._room.worst()
            if worst is None or worst.band <= item.band:
                return False
            self._room.remove(worst)
            self._refuse(worst, RefusalReason.QUEUE_FULL, "too many requests wait", item.arrived_s)
        return True

    def _let_in(self) -> None:
        """Give the engine what it has room for, and say when to look again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now_s = time.monotonic()
        while len(self._room) and (busy_s := self.load.busy_s(now_s)) < WINDOW_S:
            item, late = self._room.take(now_s, busy_s, self._may_go)
            self._refuse_late(late, None, now_s)
            if item is None:
                break
            self._begin(item, now_s)
        if len(self._room):
            for item in islice(self._room, PRICED):
                self._price(item)
            self._refuse_late(self._room.refuse_late(now_s, self.load.busy_s(now_s)), None, now_s)
            ready_s = self.load.busy_s(now_s) - WINDOW_S
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(min(max(ready_s, 0.01), LOOK_S), self._let_in)

    def _may_go(self, item: Item) -> bool:
        load, request = self.load, item.what.request
        if len(load) >= load.seats:
            return False
        seats = max(engine_share(load.seats, len({*self._lately.tenants, *load.tenants})), 1)
        if load.tenants[item.tenant] >= seats:
            return False
        self._price(item)
        output_tokens = request.sampling.max_tokens
        if len(load) and item.tokens + output_tokens > load.free_kv_tokens:
            return False
        return request.priority is not Priority.BACKGROUND or self._background_may_go(item, time.monotonic())

    def _price(self, item: Item) -> None:
        """What it would take now. Since it came, others with its beginning may have been computed."""
        prompt_tokens, cached_tokens = len(item.what.request.token_ids), item.what.cached()
        item.own_s = self.load.own_s(cached_tokens, prompt_tokens)
        item.tokens = max(prompt_tokens - cached_tokens, 1)

    def _background_may_go(self, item: Item, now_s: float) -> bool:
        """memserve's own questions give way to users: one at a time, and beside no prompt of theirs."""
        load, band = self.load, Priority.BACKGROUND.band
        if now_s - self._user_s > RECENT_S and load.bands[band] == len(load):
            return load.bands[band] < max(BACKGROUND_SHARE * load.seats, 1)
        users = load.prompts_of_band.total() - load.prompts_of_band[band]
        return load.bands[band] == 0 and (users == 0 or now_s - item.arrived_s > BACKGROUND_PATIENCE_S)

    def _begin(self, item: Item, now_s: float) -> None:
        request = item.what.request
        self.load.began(
            request.request_id,
            now_s,
            tenant=item.tenant,
            band=item.band,
            cached_tokens=len(request.token_ids) - item.tokens,
            prompt_tokens=len(request.token_ids),
            output_tokens=request.sampling.max_tokens,
        )
        if item.what.begins.done():  # its caller has gone away in this moment
            self.load.ended(request.request_id, now_s)
            return
        item.what.begins.set_result(None)

    def _ended(self, turn: Turn) -> None:
        self.load.ended(turn.request.request_id, time.monotonic())
        if turn.request.priority is not Priority.BACKGROUND:
            self._user_s = time.monotonic()
        self._let_in()
        self._changed()

    def _refuse_late(self, items: Iterable[Item], offered: Item | None, now_s: float) -> None:
        for item in items:
            soonest_s = self.load.busy_s(now_s) + item.own_s
            left_s = item.deadline_s - now_s
            if item is offered or soonest_s > left_s:
                detail = (
                    f"the first token is predicted after more than {max(soonest_s, 0) * 1000:.0f} ms, and "
                    f"has {max(left_s, 0) * 1000:.0f} ms"
                )
                self._refuse(item, RefusalReason.LATE, detail, now_s)
            else:
                self._refuse(item, RefusalReason.GAVE_WAY, "it gave way to requests that cannot wait", now_s)

    def _refuse(self, item: Item, reason: RefusalReason, detail: str, now_s: float) -> None:
        retry_after_s = self._room.promise(item, now_s, self.load.busy_s(now_s))
        if not item.what.begins.done():
            item.what.begins.set_exception(Overloaded(reason, detail, retry_after_s))
