"""What an answer used and why it went where it went, whichever gateway of the registry is asked."""

from __future__ import annotations

import logging
from dataclasses import replace

from memserve.domain import AnswerExplanation, Explanation, KeptAnswer, Tenant
from memserve.errors import RegistryUnavailable, RequestNotKnown, UnreadableRecord
from memserve.gateway.explanations import Explanations
from memserve.gateway.leave_one_out import CannotWeigh, LeavingOneOut
from memserve.memory.answers.store import KeptAnswers

log = logging.getLogger("memserve.gateway")

NOT_KEPT = "it is not kept: it has had no token yet, too much time has passed, or a memory of it was erased"
KEEPS_NONE = "this gateway keeps no answers (setting answers_kept_s)"


class AnswerExplanations:
    """Routing decisions, kept answers, and what their passages weighed."""

    def __init__(self, routing: Explanations, kept: KeptAnswers, leaving_out: LeavingOneOut) -> None:
        self._routing = routing
        self._kept = kept
        self._leaving_out = leaving_out

    async def explain(self, tenant: str, request_id: str) -> Explanation:
        """As `Explanations.explain`."""
        return await self._routing.explain(tenant, request_id)

    async def explain_answer(
        self, tenant: Tenant, request_id: str, deadline_s: float, *, leave_one_out: bool = False
    ) -> AnswerExplanation:
        """deadline_s: for leaving passages out, on the monotonic clock.

        leave_one_out: measure how much each passage mattered, unless it has been measured. Raises
        RequestNotKnown, for another tenant's request too, and as `Scoring.score`.
        """
        answer, absent = await self._answer(tenant.name, request_id)
        routing: Explanation | None = None
        try:
            routing = await self._routing.explain(tenant.name, request_id)
        except RequestNotKnown:
            if answer is None:
                raise
        if not leave_one_out or (answer is not None and answer.leave_one_out is not None):
            return AnswerExplanation(routing, answer, absent)
        if answer is None:
            return AnswerExplanation(routing, None, absent, absent)
        try:
            found = await self._leaving_out.weigh(tenant, answer, deadline_s)
        except CannotWeigh as why:
            return AnswerExplanation(routing, answer, absent, str(why))
        try:
            await self._kept.keep_weights(tenant.name, request_id, found)
        except RegistryUnavailable as error:
            log.warning("what passages weighed is not kept: %s", error)
        return AnswerExplanation(routing, replace(answer, leave_one_out=found), absent)

    async def _answer(self, tenant: str, request_id: str) -> tuple[KeptAnswer | None, str]:
        """It, or why there is none."""
        if not self._kept.keeps:
            return None, KEEPS_NONE
        try:
            answer = await self._kept.get(tenant, request_id)
        except (RegistryUnavailable, UnreadableRecord) as error:
            return None, str(error)
        return answer, "" if answer is not None else NOT_KEPT
