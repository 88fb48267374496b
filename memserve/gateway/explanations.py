"""Why a request went where it went, whichever gateway of the registry is asked."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from memserve.domain import (
    CachedTokens,
    ExcludedWorker,
    Explanation,
    FinishReason,
    ModuleFit,
    ModuleKind,
    OutdatedFact,
    RecallOutcome,
    RecallPart,
    RecallSource,
    Route,
    RouteCandidate,
    RungCost,
    Skipped,
    SkipReason,
    Usage,
    UsedModule,
)
from memserve.errors import RegistryUnavailable, RequestNotKnown, UnreadableRecord
from memserve.gateway.decisions import Decisions
from memserve.records import known_fields, reading
from memserve.registry.gateways import Gateways

TOPIC = "explain"


class Explanations:
    """This gateway's decisions, and those of the others."""

    def __init__(self, decisions: Decisions, gateways: Gateways) -> None:
        self._decisions = decisions
        self._gateways = gateways
        gateways.on(TOPIC, self._answer)

    async def explain(self, tenant: str, request_id: str) -> Explanation:
        """Raises RequestNotKnown, for another tenant's request too."""
        try:
            return self._decisions.explain(tenant, request_id)
        except RequestNotKnown:
            known = await self._others(tenant, request_id)
            if known is None:
                raise
            return known

    async def _others(self, tenant: str, request_id: str) -> Explanation | None:
        try:
            said = await self._gateways.ask(TOPIC, tenant=tenant, request_id=request_id)
            return read_explanation(said.answers[0]) if said.answers else None
        except (RegistryUnavailable, UnreadableRecord):
            return None

    def _answer(self, question: dict[str, str]) -> dict[str, Any] | None:
        try:
            return asdict(self._decisions.explain(question["tenant"], question["request_id"]))
        except RequestNotKnown:
            return None


def read_explanation(record: Any) -> Explanation:
    """One that another gateway wrote, perhaps a newer one. Raises UnreadableRecord."""
    with reading("Explanation"):
        route, usage = known_fields(Route, record["route"]), record["usage"]
        route["modules"] = tuple(
            UsedModule(**{**known_fields(UsedModule, used), "kind": ModuleKind(used["kind"])})
            for used in route["modules"]
        )
        route["recall_outcome"] = RecallOutcome(route["recall_outcome"])
        route["passages"] = ()
        route["skipped"] = tuple(
            Skipped(**{**known_fields(Skipped, entry), "reason": SkipReason(entry["reason"])})
            for entry in route.get("skipped", ())
        )
        route["recall"] = tuple(_part(entry) for entry in route.get("recall", ()))
        route["module_fits"] = tuple(
            ModuleFit(**known_fields(ModuleFit, entry)) for entry in route.get("module_fits", ())
        )
        route["outdated"] = tuple(
            OutdatedFact(**known_fields(OutdatedFact, entry)) for entry in route.get("outdated", ())
        )
        for name, kind in (("candidates", RouteCandidate), ("excluded", ExcludedWorker)):
            route[name] = tuple(kind(**known_fields(kind, entry)) for entry in route[name])
        if usage is not None:
            usage = known_fields(Usage, usage)
            usage["cached"] = CachedTokens(**known_fields(CachedTokens, usage["cached"]))
            usage["finish_reason"] = FinishReason(usage["finish_reason"])
            usage["rungs"] = tuple(
                RungCost(**known_fields(RungCost, entry)) for entry in usage.get("rungs", ())
            )
        return Explanation(Route(**route), record["outcome"], Usage(**usage) if usage is not None else None)


def _part(record: Any) -> RecallPart:
    known = known_fields(RecallPart, record)
    source, outcome = RecallSource(known["source"]), RecallOutcome(known["outcome"])
    return RecallPart(**{**known, "source": source, "outcome": outcome})
