"""How much each passage of a kept answer mattered: the answer's likelihood with and without it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

from memserve.domain import (
    KeptAnswer,
    KeptModule,
    KeptPrompt,
    LeaveOneOut,
    Memory,
    PassageWeight,
    ScoredMemory,
    Tenant,
)
from memserve.domain.kinds import KINDS
from memserve.domain.worker_calls import PLACEHOLDER_TOKEN, SCORED_TOKENS_MAX
from memserve.errors import InvalidField, ModuleNotFound, OtherBase
from memserve.gateway.layout import PromptLayout
from memserve.gateway.scoring import Scoring
from memserve.gateway.steps.resolve import AnsweringModule, AnsweringModules
from memserve.memory.modules.memory import ParametricMemory
from memserve.turns import FairThreads

PASSAGES_MAX = 16
LONGEST_S = 60.0


class CannotWeigh(Exception):
    """The passages of an answer cannot be weighed, whoever asks again. The text says why."""


class LeavingOneOut:
    """Rebuilds kept prompts with a passage left out, and has the answers scored behind them."""

    def __init__(
        self, layout: PromptLayout, tokenizing: FairThreads, modules: ParametricMemory, scoring: Scoring
    ) -> None:
        self._layout = layout
        self._tokenizing = tokenizing
        self._modules = modules
        self._scoring = scoring

    async def weigh(self, tenant: Tenant, answer: KeptAnswer, deadline_s: float) -> LeaveOneOut:
        """deadline_s: on the monotonic clock. Raises CannotWeigh, and as `Scoring.score`."""
        prompt = answer.prompt
        if prompt is None:
            raise CannotWeigh(f"no prompt is kept: {answer.prompt_absent}")
        if not answer.passages:
            raise CannotWeigh("the prompt has no passages")
        chosen = best_places([passage.score for passage in answer.passages], PASSAGES_MAX)
        modules = await self._answering(tenant, answer.modules)
        rebuild = partial(self._prompts, prompt, chosen, modules.origin.prefix_tokens)
        prompts = await self._tokenizing.run(tenant.name, rebuild)
        scored = prompt.answer_ids[:SCORED_TOKENS_MAX]
        deadline_s = min(deadline_s, time.monotonic() + LONGEST_S)
        # The whole prompt first: the others find its beginning computed.
        whole = sum(
            await self._scoring.score(tenant, prompt.token_ids, scored, modules, deadline_s=deadline_s)
        )
        without = await self._scoring.score_all(tenant, prompts, scored, modules, deadline_s=deadline_s)
        return LeaveOneOut(
            passages=tuple(
                _weight(answer, place, whole - sum(left), len(scored))
                for place, left in zip(chosen, without, strict=True)
            ),
            logprob=whole,
            scored_tokens=len(scored),
            at_s=time.time(),
        )

    async def _answering(self, tenant: Tenant, kept: Sequence[KeptModule]) -> AnsweringModules:
        """The same versions that answered. Raises CannotWeigh where one is gone."""
        answering = []
        for module in kept:
            reference = f"{module.name}@{module.version}"
            try:
                found = await self._modules.resolve("modules", tenant.name, reference, "")
            except (ModuleNotFound, OtherBase):
                raise CannotWeigh(f"module {reference}, which answered, is gone") from None
            if found.version.digest != module.digest:
                raise CannotWeigh(f"module {reference} is another one than the one that answered")
            answering.append(AnsweringModule(found.version, module.strength, found.reason))
        return AnsweringModules(tuple(module for module in answering if module.version.kind in KINDS))

    def _prompts(self, prompt: KeptPrompt, chosen: Sequence[int], prefix_tokens: int) -> list[list[int]]:
        """[chosen] prompts, each without one passage. Blocks while they are encoded. Raises CannotWeigh."""
        everything = self._encode(prompt, prompt.passages, prefix_tokens)
        if tuple(everything) != prompt.token_ids:
            raise CannotWeigh("the model's tokenizer or the template of passages has changed since")
        return [
            self._encode(prompt, [*prompt.passages[:place], *prompt.passages[place + 1 :]], prefix_tokens)
            for place in chosen
        ]

    def _encode(self, prompt: KeptPrompt, texts: Sequence[str], prefix_tokens: int) -> list[int]:
        passages = [passage_of(text) for text in texts]
        arranged = self._layout.arrange(prompt.messages, passages, raw=prompt.raw, tools=prompt.tools)
        try:
            token_ids = self._layout.encode(arranged, raw=prompt.raw, behind=prefix_tokens > 0)
            return [PLACEHOLDER_TOKEN] * prefix_tokens + token_ids
        except InvalidField as error:
            raise CannotWeigh(f"the prompt cannot be put together again: {error.rule}") from None


def passage_of(text: str) -> ScoredMemory:
    """The text as a recalled memory. A prompt shows only the text, so that the other fields do not matter."""
    return ScoredMemory(Memory("", "", text, "", (), 0.0), 1.0, None, None)


def best_places(scores: Sequence[float], most: int) -> list[int]:
    """Places of the best scores, in their order. Of equal ones the first."""
    by_score = sorted(range(len(scores)), key=lambda place: (-scores[place], place))
    return sorted(by_score[:most])


def _weight(answer: KeptAnswer, place: int, nats: float, tokens: int) -> PassageWeight:
    passage = answer.passages[place]
    return PassageWeight(passage.namespace, passage.memory_id, passage.version, nats, nats / tokens)
