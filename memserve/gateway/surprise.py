"""Has the served model judge a text before it is remembered: the surprise gate around its policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memserve.domain import Message, Role, ScoredMemory, SurpriseScore, Tenant
from memserve.domain.worker_calls import SCORED_TOKENS_MAX
from memserve.errors import InvalidField, MemserveError
from memserve.gateway.layout import PromptLayout
from memserve.gateway.scoring import BASE, Scoring
from memserve.gateway.steps.resolve import AnsweringModules
from memserve.policy.recall.prompt import one_line, order_passages
from memserve.policy.recall.surprise import DEFAULT, SurprisePolicy, judge, not_judged

FRAME = (Message(Role.USER, "What do you know?"),)
"""What the text is an answer to."""
NEAR_MAX = 8
"""Near memories that are shown to the model."""


@dataclass(frozen=True, slots=True)
class TextScores:
    """What a model makes of a text's tokens."""

    text: str
    spans: tuple[tuple[int, int], ...]
    """[tokens] where each begins and ends in the text."""
    alone: tuple[float, ...]
    """[tokens] log-probabilities, given nothing."""
    recalled: tuple[float, ...] | None
    """The same, given what is remembered. None: nothing near is, or nothing that fits into the context."""
    near: tuple[str, ...] = ()
    """The texts that were shown for it."""

    def judged(self, policy: SurprisePolicy = DEFAULT) -> SurpriseScore:
        return judge(self.text, self.spans, self.alone, self.recalled, self.near, policy)


class SurpriseGate:
    """Scores a text without and with what is remembered, and decides as the policy does."""

    def __init__(self, scoring: Scoring, layout: PromptLayout, context_tokens: int) -> None:
        self._scoring = scoring
        self._layout = layout
        self._context_tokens = context_tokens

    async def judge(
        self,
        tenant: Tenant,
        text: str,
        near: Sequence[ScoredMemory] = (),
        modules: AnsweringModules = BASE,
        *,
        deadline_s: float,
        policy: SurprisePolicy = DEFAULT,
    ) -> SurpriseScore:
        """What the model makes of the text. Raises nothing: what cannot be judged in time is stored.

        near: remembered texts, best first. Of more than NEAR_MAX the others are not shown.
        modules: what the tenant's answers are made with. deadline_s: on the monotonic clock.
        """
        try:
            scores = await self.scores(tenant, text, near, modules, deadline_s=deadline_s)
        except MemserveError as error:
            return not_judged(str(error))
        return scores.judged(policy)

    async def scores(
        self,
        tenant: Tenant,
        text: str,
        near: Sequence[ScoredMemory] = (),
        modules: AnsweringModules = BASE,
        *,
        deadline_s: float,
    ) -> TextScores:
        """Arguments as of `judge`.

        Raises InvalidField for a text without or with too many tokens, and as `Scoring.score`.
        """
        tokens = await self._scoring.continuation(tenant, text)
        if not 0 < len(tokens) <= SCORED_TOKENS_MAX:
            raise InvalidField("text", f"{len(tokens)} tokens; from 1 to {SCORED_TOKENS_MAX} are scored")
        prompts = [await self._scoring.prompt(tenant, FRAME)]
        recalled, shown = await self._recalled_prompt(tenant, near, len(tokens))
        if shown:
            prompts.append(recalled)
        ids = [token.token_id for token in tokens]
        scores = await self._scoring.score_all(tenant, prompts, ids, modules, deadline_s=deadline_s)
        spans = tuple((token.start, token.end) for token in tokens)
        return TextScores(text, spans, scores[0], scores[1] if shown else None, shown)

    async def _recalled_prompt(
        self, tenant: Tenant, near: Sequence[ScoredMemory], tokens: int
    ) -> tuple[list[int], tuple[str, ...]]:
        """[prompt_tokens] with as many of the near memories as fit, and their texts."""
        quotable = self._layout.tokenizer.can_quote
        shown = [hit for hit in near[:NEAR_MAX] if quotable(one_line(hit.memory.text))]
        while shown:
            prompt = await self._scoring.prompt(tenant, FRAME, order_passages(shown))
            if len(prompt) + tokens <= self._context_tokens:
                return prompt, tuple(hit.memory.text for hit in shown)
            shown.pop()
        return [], ()
