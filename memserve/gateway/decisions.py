"""The last routing decisions, for `memserve explain`: where a request went, why, and what became of it."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

from memserve.domain import Explanation, Route, Usage
from memserve.errors import RequestNotKnown

KEPT = 2048
UNDER_WAY = "under way"
ANSWERED = "answered"


@dataclass(slots=True)
class _Decision:
    tenant: str
    route: Route
    outcome: str = UNDER_WAY
    usage: Usage | None = None


class Decisions:
    """The newest `kept` of them. A request that goes to a second worker has a decision and an id for each."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._decisions: OrderedDict[str, _Decision] = OrderedDict()

    def __len__(self) -> int:
        return len(self._decisions)

    def routed(self, tenant: str, route: Route) -> None:
        # Passages may be large, and are in the receipt.
        self._decisions[route.request_id] = _Decision(tenant, replace(route, passages=()))
        if len(self._decisions) > self._kept:
            self._decisions.popitem(last=False)

    def ended(self, request_id: str, outcome: str, usage: Usage | None = None) -> None:
        """One that is not kept any more is passed over."""
        decision = self._decisions.get(request_id)
        if decision is not None:
            decision.outcome, decision.usage = outcome, usage

    def outcome(self, request_id: str) -> str:
        """As far as it is known. "": it is not kept any more."""
        decision = self._decisions.get(request_id)
        return "" if decision is None else decision.outcome

    def explain(self, tenant: str, request_id: str) -> Explanation:
        """Raises RequestNotKnown, for another tenant's request too."""
        decision = self._decisions.get(request_id)
        if decision is None or decision.tenant != tenant:
            raise RequestNotKnown(request_id, self._kept)
        return Explanation(decision.route, decision.outcome, decision.usage)
