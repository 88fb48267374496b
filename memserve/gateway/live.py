"""The answers under way, each with its numbered step and the seconds in each, for the page of the HTTP port.

The numbers are those of `docs/architecture.md`. Nothing here is done for every token.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass

from memserve.domain import Route, Usage
from memserve.errors import MemserveError
from memserve.gateway.step_spans import StepSpans
from memserve.logs import LOGGED_CALL

STEPS = (
    "call",
    "tenant and versions",
    "recall",
    "prompt",
    "look-up",
    "routing",
    "worker",
    "text",
)
"""By number, from 1 on."""
FIRST_STEP = 2
"""The gateway counts a request from here. Its edge has taken step 1."""
UNDER_WAY, ANSWERED, CALLER_GONE, INCIDENT = "under way", "answered", "caller gone", "internal error"
ENDED_KEPT = 8
TENANTS_KEPT = 256


@dataclass(frozen=True, slots=True)
class LiveState:
    """A request at one moment."""

    number: int
    """Counts the gateway's requests, from 1. The id comes with the route."""
    request_id: str
    """Empty before step 6."""
    worker_id: str
    """Empty before step 6."""
    modules: tuple[str, ...]
    """References, as name@version."""
    prompt_tokens: int
    step: int
    """The one that the request is in, or was in when it ended."""
    step_seconds: tuple[float, ...]
    """[8] by step. A request that goes to another worker is in steps 6 and 7 again."""
    outcome: str
    """Why it ended, in a word or two; never what a caller has sent."""
    ended_s: float | None
    """On the monotonic clock. None: it is under way."""


class LiveRequest:
    """One request, whose pipeline says when a step begins. Each step is a span where the call is traced."""

    __slots__ = ("_route", "_seconds", "_since_s", "_spans", "answered", "current", "number", "tenant")

    def __init__(self, number: int = 0, tenant: str = "") -> None:
        self.number = number
        self.tenant = tenant
        self.current = FIRST_STEP
        """The step that it is in."""
        self.answered = False
        """Whether its usage is there."""
        self._since_s = time.monotonic()
        self._seconds = [0.0] * len(STEPS)
        self._route: Route | None = None
        self._spans = StepSpans(_titled(1), _titled(FIRST_STEP))

    def step(self, number: int) -> None:
        """The step begins, and the one before it ends."""
        now_s = time.monotonic()
        self._seconds[self.current - 1] += now_s - self._since_s
        self.current, self._since_s = number, now_s
        self._spans.step(_titled(number))

    def routed(self, route: Route) -> None:
        self._route = route
        if (call := LOGGED_CALL.get()) is not None:
            call.request_id = route.request_id
        self._spans.routed(route)

    def ended(self, usage: Usage) -> None:
        """The answer is complete. Callers need not wait for what comes after that."""
        self.answered = True
        self._spans.ended(usage)

    def close(self) -> None:
        """Its last step has ended."""
        self._spans.close()

    def state(self, now_s: float, outcome: str = UNDER_WAY) -> LiveState:
        """outcome: of one that ends now."""
        seconds = list(self._seconds)
        seconds[self.current - 1] += max(now_s - self._since_s, 0.0)
        route = self._route
        return LiveState(
            number=self.number,
            request_id=route.request_id if route else "",
            worker_id=route.worker_id if route else "",
            modules=tuple(f"{used.name}@{used.version}" for used in route.modules) if route else (),
            prompt_tokens=route.prompt_tokens if route else 0,
            step=self.current,
            step_seconds=tuple(seconds),
            outcome=outcome,
            ended_s=None if outcome == UNDER_WAY else now_s,
        )


class LiveRequests:
    """Those of one gateway: the ones under way, and the last `ended_kept` of each tenant.

    `Inflight` bounds how many are under way.
    """

    def __init__(self, ended_kept: int = ENDED_KEPT, tenants_kept: int = TENANTS_KEPT) -> None:
        self._ended_kept = ended_kept
        self._tenants_kept = tenants_kept
        self._numbers = itertools.count(1)
        self._under_way: dict[int, LiveRequest] = {}
        # By tenant, the one whose request ended last at the end.
        self._ended: OrderedDict[str, deque[LiveState]] = OrderedDict()

    @contextlib.contextmanager
    def request(self, tenant: str) -> Iterator[LiveRequest]:
        """One is under way while inside."""
        request = LiveRequest(next(self._numbers), tenant)
        self._under_way[request.number] = request
        outcome = ANSWERED
        try:
            yield request
        except BaseException as error:
            outcome = ANSWERED if request.answered else outcome_of(error)
            raise
        finally:
            del self._under_way[request.number]
            request.close()
            self._end(request, outcome)

    def under_way(self, tenant: str, now_s: float) -> list[LiveState]:
        """The tenant's, the oldest first."""
        return [request.state(now_s) for request in [*self._under_way.values()] if request.tenant == tenant]

    def ended(self, tenant: str) -> list[LiveState]:
        """The tenant's last ones, the newest first."""
        return [*reversed(self._ended.get(tenant, ()))]

    def by_step(self) -> Counter[int]:
        """How many of all tenants are in each step."""
        return Counter(request.current for request in [*self._under_way.values()])

    def _end(self, request: LiveRequest, outcome: str) -> None:
        ended = self._ended.pop(request.tenant, None) or deque(maxlen=self._ended_kept)
        ended.append(request.state(time.monotonic(), outcome))
        self._ended[request.tenant] = ended
        if len(self._ended) > self._tenants_kept:
            self._ended.popitem(last=False)


def _titled(number: int) -> str:
    """As a span names the step."""
    return f"{number} {STEPS[number - 1]}"


def outcome_of(error: BaseException) -> str:
    """Why a request ended, from what it ended with."""
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return CALLER_GONE
    if not isinstance(error, MemserveError):
        return INCIDENT
    reason = getattr(error, "reason", "")
    return f"{type(error).__name__}: {reason}" if reason else type(error).__name__
