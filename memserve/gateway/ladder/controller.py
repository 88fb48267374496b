"""Moves namespaces on the ladder of knowledge. The setting `knowledge_ladder` says whether it acts.

1. Every gateway looks at each tenant's record. The one that takes the turn reads where its namespaces stand
   (`standing.py`) and has the policy decide (`policy/modules/promotion.py`).
2. It decides when the interval is over, and soon after a change of the tenant's modules, or of its memories
   while a module that was made of some may answer: so a fact that has changed is not answered from weights.
3. Where it acts, it carries the decisions out in their order (`hands.py`), and each leaves an event in the
   audit. A full audit stops it. Advice leaves an event when it differs from the last.
4. The record has the decisions with their reasons, for `memserve ladder show`. All gateways follow it: which
   prefixes are warm, and the metrics.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from memserve.config import Settings
from memserve.domain import Tenant
from memserve.domain.ladder import (
    RUNGS,
    WEIGHTS,
    LadderAction,
    LadderBudget,
    LadderDecision,
    LadderReport,
    LadderStep,
    LadderUse,
    Rung,
)
from memserve.errors import (
    AuditFull,
    BlobStoreUnavailable,
    CacheUnavailable,
    MemserveError,
    NoWorker,
    RegistryUnavailable,
    UnreadableRecord,
    VectorStoreUnavailable,
)
from memserve.gateway.access.callers import Access
from memserve.gateway.ladder.hands import LadderHands
from memserve.gateway.ladder.record import LadderRecord, decode
from memserve.gateway.ladder.standing import Standing, Standings
from memserve.gateway.warm_pinned import WarmPinned
from memserve.memory.modules.registry.store import ModuleStore
from memserve.memory.texts.memory import VectorMemory
from memserve.metrics.instruments import GatewayMetrics
from memserve.policy.modules.promotion import decide
from memserve.policy.modules.rung_worth import LadderRules
from memserve.registry.ladder import LadderRecords

PRINCIPAL = "memserve ladder"
LOOK_S = 1.0
PERIOD_S = 86_400.0
CHANGED_EVERY_S = 1.0
"""After a change of a memory it is decided at most so often."""
PREFIX_SETTLES = 24
"""Times as fast as weights."""
DECIDE_MAX_S = 120.0
FAILED_PAUSE_S = 10.0
TURN_S = 1.5 * DECIDE_MAX_S
NOT_SEEN = -1
"""Of a change: it is decided again."""
REFUSED_S = 86_400.0
"""A rung that a namespace could not be brought to is not tried again for so long."""
PASSING = (
    NoWorker,
    RegistryUnavailable,
    CacheUnavailable,
    VectorStoreUnavailable,
    BlobStoreUnavailable,
    AuditFull,
)
PASSING_S = 600.0
"""The same where something was not there that comes back."""

log = logging.getLogger("memserve.gateway.ladder")


@dataclass(frozen=True, slots=True)
class LadderOrder:
    """What the settings want."""

    mode: str
    interval_s: float
    budget: LadderBudget
    rules: LadderRules

    @property
    def acts(self) -> bool:
        return self.mode == "act"


def order_of(settings: Settings) -> LadderOrder:
    return LadderOrder(
        settings.knowledge_ladder,
        settings.knowledge_ladder_interval_s,
        LadderBudget(settings.knowledge_ladder_bytes, settings.knowledge_ladder_cpu_s),
        LadderRules(
            dwell_s=settings.knowledge_ladder_dwell_s,
            settle_s=settings.knowledge_ladder_settle_s,
            settle_prefix_s=settings.knowledge_ladder_settle_s / PREFIX_SETTLES,
        ),
    )


class LadderController:
    """Of all tenants. `look` is the step of one of the gateway's loops."""

    def __init__(
        self,
        order: LadderOrder,
        records: LadderRecords,
        standings: Standings,
        hands: LadderHands,
        texts: VectorMemory,
        store: ModuleStore,
        warm_pinned: WarmPinned,
        access: Access,
        metrics: GatewayMetrics,
    ) -> None:
        self.order = order
        self._records = records
        self._standings = standings
        self._hands = hands
        self._texts = texts
        self._store = store
        self._warm_pinned = warm_pinned
        self._access = access
        self._metrics = metrics
        self._not_before_s: dict[str, float] = {}
        """By tenant, after a look that failed."""

    async def look(self) -> None:
        """Follow every tenant's record, and decide for those that are due."""
        names = self._access.known_tenants()
        try:
            texts = await self._records.read(names)
        except MemserveError as error:
            log.warning("the ladder is looked at later: %s", error)
            return
        records = {name: _record(name, texts.get(name, "")) for name in names}
        for name, record in records.items():
            await self._warm_pinned.cool(name, record.cooled if self.order.acts else ())
            if time.monotonic() < self._not_before_s.get(name, 0.0):
                continue
            try:
                if await self._is_due(name, record, time.time()):
                    await self._take_turn(name)
            except (MemserveError, TimeoutError) as error:
                log.warning("the ladder of %s is looked at later: %s", name, str(error) or "it took too long")
                self._not_before_s[name] = time.monotonic() + FAILED_PAUSE_S
            except Exception as error:
                # One tenant's figures must not keep the others' facts from being taken down.
                log.error("the ladder of %s failed; it is looked at later", name, exc_info=error)
                self._not_before_s[name] = time.monotonic() + FAILED_PAUSE_S
        self._show(list(records.values()))

    async def report(self, tenant: str) -> LadderReport:
        """What was last decided. Raises RegistryUnavailable."""
        record = _record(tenant, (await self._records.read([tenant])).get(tenant, ""))
        return LadderReport(self.order.mode, record.at_s, self.order.budget, record.use, record.steps)

    async def _is_due(self, tenant: str, record: LadderRecord, now_s: float) -> bool:
        if now_s - record.at_s >= self.order.interval_s or now_s < record.at_s:
            return True
        if now_s - record.at_s < CHANGED_EVERY_S:
            return False
        has_live = any(of.has_live for of in record.namespaces.values())
        if self._hands.has_failed(tenant):
            return True
        if has_live and await self._texts.last_change(tenant) != record.sequence:
            return True
        return await self._store.last_event_id(tenant) != record.event

    async def _take_turn(self, tenant: str) -> None:
        token = uuid.uuid4().hex
        if not await self._records.take_turn(tenant, token, TURN_S):
            return
        try:
            async with asyncio.timeout(DECIDE_MAX_S):
                # Another gateway may have decided since the record was read.
                record = _record(tenant, (await self._records.read([tenant])).get(tenant, ""))
                if await self._is_due(tenant, record, time.time()):
                    await self._decide(self._access.named(tenant, PRINCIPAL), record)
        finally:
            await self._records.end_turn(tenant, token)

    async def _decide(self, tenant: Tenant, record: LadderRecord) -> None:
        # Before anything is read: a change that comes meanwhile is seen next time.
        record.sequence = await self._texts.last_change(tenant.name)
        record.event = await self._store.last_event_id(tenant.name)
        now_s = time.time()
        if now_s - record.period_s >= PERIOD_S or now_s < record.period_s:
            record.period_s, record.use = now_s, replace(record.use, make_s=0.0)
        if self.order.acts:
            await self._store.check_audit(tenant.name)
        standings = {
            each.subject.name: each
            for each in await self._standings.read(tenant.name, record, now_s, acts=self.order.acts)
        }
        for (namespace, rung), error in self._hands.failures(tenant.name).items():
            self._refuse(record, namespace, rung, error, now_s)
        decisions = decide(
            [each.subject for each in standings.values()],
            self.order.budget,
            record.use.make_s,
            now_s,
            self.order.rules,
        )
        resident_bytes = sum(
            each.subject.costs[each.subject.rung].resident_bytes for each in standings.values()
        )
        record.use = LadderUse(resident_bytes, record.use.make_s)
        before, record.at_s = record.steps, now_s
        if self.order.acts:
            record.steps = await self._carry_out(tenant, record, decisions, standings, now_s)
        else:
            record.steps = tuple(LadderStep(each, _waiting(standings[each.subject])) for each in decisions)
            for advice in _news(before, record.steps):
                await self._note(tenant, "ladder_advise", advice)
        await self._records.write(tenant.name, record.encode())

    async def _carry_out(
        self,
        tenant: Tenant,
        record: LadderRecord,
        decisions: Sequence[LadderDecision],
        standings: dict[str, Standing],
        now_s: float,
    ) -> tuple[LadderStep, ...]:
        trained = {
            each.subject
            for each in decisions
            if each.to_rung in WEIGHTS and not standings[each.subject].is_made(each.to_rung)
        }
        steps: list[LadderStep] = []
        for decision in decisions:
            standing = standings[decision.subject]
            if decision.action is LadderAction.KEEP:
                steps.append(LadderStep(decision, _waiting(standing)))
                continue
            if decision.makes_room_for in trained:
                later = f"not yet: {decision.makes_room_for} is trained first"
                steps.append(LadderStep(decision, later))
                continue
            news = not any(_same(step.decision, decision) for step in record.steps)
            try:
                outcome = await self._hands.carry_out(tenant, standing, decision, record)
            except MemserveError as error:
                outcome = f"not done: {error}"
                if standing.subject.outdated:
                    record.sequence = NOT_SEEN  # requests still reach it: it is tried again in a moment
                self._refuse(record, decision.subject, decision.to_rung, error, now_s)
            else:
                self._count(record, decision, is_trained=decision.subject in trained)
                self._metrics.ladder_moves.labels(decision.action).inc()
            step = LadderStep(decision, outcome)
            steps.append(step)
            if news:
                await self._note(tenant, "ladder", step)
        return tuple(steps)

    def _count(self, record: LadderRecord, decision: LadderDecision, *, is_trained: bool) -> None:
        """What a decision that was carried out takes of the budget. A training takes no bytes yet."""
        spent_s = decision.after.make_s - decision.before.make_s
        more = 0 if is_trained else decision.after.resident_bytes - decision.before.resident_bytes
        record.use = LadderUse(record.use.resident_bytes + more, record.use.make_s + spent_s)
        if not is_trained:
            of = record.namespaces[decision.subject]
            of.rung, of.since_s = decision.to_rung, record.at_s

    def _refuse(
        self, record: LadderRecord, namespace: str, rung: Rung, error: MemserveError, now_s: float
    ) -> None:
        if (of := record.namespaces.get(namespace)) is not None and rung in WEIGHTS:
            of.begun.pop(rung, None)
            of.refused[rung] = (now_s + refused_s(error), str(error))

    async def _note(self, tenant: Tenant, action: str, step: LadderStep) -> None:
        decision = step.decision
        await self._store.record(
            tenant.name,
            tenant.principal,
            action,
            "",
            json.dumps({"namespace": decision.subject, "rung": decision.from_rung}),
            json.dumps(
                {
                    "namespace": decision.subject,
                    "rung": decision.to_rung,
                    "decision": decision.action,
                    "reason": decision.reason,
                    "outcome": step.outcome,
                    "use": asdict(decision.after),
                }
            ),
        )

    def _show(self, records: Sequence[LadderRecord]) -> None:
        """The metrics: what all tenants' records say."""
        counts = Counter(of.rung for record in records for of in record.namespaces.values())
        for rung in RUNGS:
            self._metrics.ladder_namespaces.labels(rung).set(counts[rung])
        self._metrics.ladder_bytes.set(sum(record.use.resident_bytes for record in records))
        self._metrics.ladder_making.set(sum(record.use.make_s for record in records))


def refused_s(error: MemserveError) -> float:
    """For how long a rung is not tried again."""
    return PASSING_S if isinstance(error, PASSING) else REFUSED_S


def _record(tenant: str, text: str) -> LadderRecord:
    if text:
        try:
            return decode(text)
        except UnreadableRecord as error:
            log.warning("the ladder of %s begins anew: %s", tenant, error)
    return LadderRecord()


def _waiting(standing: Standing) -> str:
    names = ", ".join(module.version.reference for module in standing.waiting)
    return f"{names} waits for `memserve modules promote`" if names else ""


def _same(decision: LadderDecision, other: LadderDecision) -> bool:
    """The figures in their reasons change with every use."""
    return (decision.subject, decision.action, decision.from_rung, decision.to_rung) == (
        other.subject,
        other.action,
        other.from_rung,
        other.to_rung,
    )


def _news(before: Sequence[LadderStep], after: Sequence[LadderStep]) -> list[LadderStep]:
    """Advice that was not given last time."""
    return [
        step
        for step in after
        if step.decision.action is not LadderAction.KEEP
        and not any(_same(step.decision, known.decision) for known in before)
    ]
