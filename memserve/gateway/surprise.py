"""Has the served model judge a text before it is remembered: the surprise gate around its policy."""

from __future__ import annotations

from collections.abc import Sequence

from memserve.domain import Message, Role, ScoredMemory, SurpriseScore, Tenant
from memserve.domain.worker_calls import SCORED_TOKENS_MAX
from memserve.errors import InvalidField, MemserveError
from memserve.gateway.layout import PromptLayout
from memserve.gateway.scoring import BASE, Scoring
from memserve.gateway.steps.resolve import AnsweringModules
from memserve.policy.recall.prompt import one_line, order_passages
from memserve.policy.recall.surprise import DEFAULT, SurprisePolicy, judge, not_judged, sentences

FRAME = (Message(Role.USER, "What do you know?"),)
"""What the text is an answer to."""
NEAR_MAX = 8
"""Near memories that are shown to the model."""


Sentences = list[Sequence[float]]


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
            alone, recalled = await self.scores(tenant, text, near, modules, deadline_s=deadline_s)
        except MemserveError as error:
            return not_judged(str(error))
        return judge(alone, recalled, policy)

    async def scores(
        self,
        tenant: Tenant,
        text: str,
        near: Sequence[ScoredMemory] = (),
        modules: AnsweringModules = BASE,
        *,
        deadline_s: float,
    ) -> tuple[Sentences, Sentences | None]:
        """[sentences][tokens] log-probabilities, without and with what is remembered.

        Arguments as of `judge`. None: nothing near is remembered, or nothing that fits into the context.
        Raises InvalidField for a text without or with too many tokens, and as `Scoring.score`.
        """
        parts = await self._scoring.continuation(tenant, sentences(text))
        tokens = [token for part in parts for token in part]
        if not 0 < len(tokens) <= SCORED_TOKENS_MAX:
            raise InvalidField("text", f"{len(tokens)} tokens; from 1 to {SCORED_TOKENS_MAX} are scored")
        prompts = [await self._scoring.prompt(tenant, FRAME)]
        if recalled := await self._recalled_prompt(tenant, near, len(tokens)):
            prompts.append(recalled)
        scored = await self._scoring.score_all(tenant, prompts, tokens, modules, deadline_s=deadline_s)
        lengths = [len(part) for part in parts]
        alone, *behind = (_split(logprobs, lengths) for logprobs in scored)
        return alone, behind[0] if behind else None

    async def _recalled_prompt(self, tenant: Tenant, near: Sequence[ScoredMemory], tokens: int) -> list[int]:
        """[prompt_tokens] with as many of the near memories as fit; empty where none does."""
        quotable = self._layout.tokenizer.can_quote
        shown = [hit for hit in near[:NEAR_MAX] if quotable(one_line(hit.memory.text))]
        while shown:
            prompt = await self._scoring.prompt(tenant, FRAME, order_passages(shown))
            if len(prompt) + tokens <= self._context_tokens:
                return prompt
            shown.pop()
        return []


def _split(logprobs: Sequence[float], lengths: Sequence[int]) -> Sentences:
    """[sentences][tokens]"""
    parts: Sentences = []
    start = 0
    for length in lengths:
        parts.append(logprobs[start : start + length])
        start += length
    return parts
