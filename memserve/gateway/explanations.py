"""Why a request went where it went, whichever gateway of the registry is asked."""

from __future__ import annotations

from pydantic import TypeAdapter, ValidationError

from memserve.domain import Explanation
from memserve.errors import RegistryUnavailable, RequestNotKnown
from memserve.gateway.decisions import Decisions
from memserve.registry.gateways import Gateways

TOPIC = "explain"
_WRITTEN = TypeAdapter(Explanation)


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
            return _WRITTEN.validate_json(said.answers[0]) if said.answers else None
        except (RegistryUnavailable, ValidationError):
            return None

    def _answer(self, question: dict[str, str]) -> str | None:
        try:
            known = self._decisions.explain(question["tenant"], question["request_id"])
        except RequestNotKnown:
            return None
        return _WRITTEN.dump_json(known).decode()
