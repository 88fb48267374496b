"""A worker as one gateway sees it: what the worker says, and what this gateway has sent it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from memserve.domain import ModulePlace, Priority, WorkerLease
from memserve.domain.worker_calls import RECENT_REQUESTS_S, WorkerCalls, WorkerDied, WorkerState
from memserve.gateway.workers.report import reported
from memserve.policy.routing.load import WorkerLoad

log = logging.getLogger("memserve.gateway.workers.pool")


@dataclass(slots=True)
class Sent:
    """A request of this gateway that has no first token yet."""

    tokens: int
    """That the worker computes for it."""
    band: int
    deadline_s: float
    """By which it is ordered in the worker's waiting room."""
    own_s: float
    """Time of the engine, as forecast."""
    at_s: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class PooledWorker:
    """A worker as this gateway sees it."""

    lease: WorkerLease
    calls: WorkerCalls
    """Code outside this file uses `calling`."""
    connected: bool = False
    """Whether its stream is alive, and no call has found it dead since."""
    heard_s: float = 0.0
    """When the last message of its stream came, on the monotonic clock."""
    state: WorkerState = field(default_factory=WorkerState)
    report: WorkerLoad = field(init=False)
    """What it has to do, with what this gateway has sent since it said so."""
    sent: dict[str, Sent] = field(default_factory=dict)
    """This gateway's requests that have no first token yet, by request id."""
    running: int = 0
    """How many of this gateway's requests are at the worker."""
    in_slots: Counter[str] = field(default_factory=Counter)
    """By digest of a module that needs a slot of the batch: how many of this gateway's requests use it."""
    tenants: Counter[str] = field(default_factory=Counter)
    """By tenant: how many of this gateway's requests are at the worker."""
    watch: asyncio.Task[None] | None = None
    epoch: int = 0
    """The epoch of the last block event; 0 before the first."""
    sequence: int = 0
    """The number of the last block event; 0 before the first."""

    def __post_init__(self) -> None:
        self.report = reported(self.lease.worker_id, self.state, self.heard_s)

    def hear(self, state: WorkerState, now_s: float) -> None:
        """The worker has reported."""
        self.state = state
        self.report = reported(self.lease.worker_id, state, now_s)
        known = state.engine.recent if state.engine is not None else frozenset()
        for request_id, sent in self.sent.items():
            if request_id not in known and sent.at_s > now_s - RECENT_REQUESTS_S:
                self.report.sent(sent.band, sent.deadline_s, sent.own_s, sent.tokens)

    @contextlib.contextmanager
    def calling(self) -> Iterator[WorkerCalls]:
        """The calls to the worker.

        A call that finds the worker dead is noted here and nowhere else. The worker is not chosen again until
        its stream is back.
        """
        try:
            yield self.calls
        except WorkerDied as error:
            log.warning("worker %s failed a call: %s", self.lease.worker_id, error.detail)
            self.connected = False
            raise

    @contextlib.contextmanager
    def serving(self, tenant: str, request_id: str, sent: Sent, slot_digest: str = "") -> Iterator[None]:
        """Count a request from the moment of its routing, so that the next routing takes it into account.

        slot_digest: the request's module that needs a slot of the batch; empty for none.
        """
        self.sent[request_id] = sent
        self.report.sent(sent.band, sent.deadline_s, sent.own_s, sent.tokens)
        self.running += 1
        self.in_slots += Counter([slot_digest] if slot_digest else [])
        self.tenants += Counter([tenant])
        try:
            yield
        finally:
            self.running -= 1
            self.in_slots -= Counter([slot_digest])  # drops a module that is at 0
            self.tenants -= Counter([tenant])
            self.sent.pop(request_id, None)

    def own_question(self, tokens: int) -> Sent:
        """memserve's own, of so many tokens to compute."""
        own_s = self.report.costs.prefill_s(0, tokens)
        return Sent(tokens, Priority.BACKGROUND.band, math.inf, own_s)

    def has_first_token(self, request_id: str) -> None:
        """Note that the request's prompt is computed."""
        self.sent.pop(request_id, None)

    def place_of(self, digest: str) -> ModulePlace:
        """Where the worker has the module, by its last state."""
        return self.state.modules.get(digest, ModulePlace.ABSENT)

    @property
    def prefill_tokens_per_s(self) -> float:
        """0: the worker has not measured its speed, or has sent a number that is no speed."""
        speed = self.state.prefill_tokens_per_s
        return speed if math.isfinite(speed) and speed > 0 else 0.0

    @property
    def pending_prefill_tokens(self) -> int:
        """Prompt tokens that the worker has yet to compute.

        It is the larger of two numbers: what this gateway sent, and what the worker's last state says. The
        state includes the requests of other gateways.
        """
        own = sum(sent.tokens for sent in self.sent.values())
        return max(own, self.state.pending_prefill_tokens)

    @property
    def load(self) -> tuple[int, int]:
        """The worker with the smallest value is the least loaded worker."""
        return self.pending_prefill_tokens, self.running
