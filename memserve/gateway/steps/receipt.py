"""The head of an answer's receipt: where the request goes, why, and with which memories."""

from __future__ import annotations

import uuid
from dataclasses import replace

from memserve.domain import OutdatedFact, RecallOutcome, RecallPart, RecallSource, Route, Skipped, SkipReason
from memserve.gateway.steps.prompt import Prompt
from memserve.gateway.steps.recall import SKIPPED_MAX, Recalled
from memserve.gateway.steps.resolve import AnsweringModules
from memserve.gateway.steps.route import RoutingChoice
from memserve.policy.recall.choosing import skipped_as


def receipt_head(
    modules: AnsweringModules,
    recalled: Recalled,
    prompt: Prompt,
    choice: RoutingChoice,
    *,
    lost: int,
    look_up_ms: float,
) -> Route:
    """lost: memories of the recalled namespaces that the vector store has lost."""
    none_fits = bool(recalled.passages) and not prompt.passages
    cached_tokens = choice.forecast.cached_tokens
    return Route(
        request_id=uuid.uuid4().hex,
        model=choice.model,
        worker_id=choice.worker_id,
        reason=choice.reason,
        predicted_ttft_ms=choice.forecast.ttft_s * 1000,
        prompt_tokens=len(prompt.token_ids),
        expected_cached_tokens=cached_tokens,
        modules=modules.used,
        recall_outcome=RecallOutcome.EMPTY if none_fits else recalled.outcome,
        passages=prompt.passages,
        lost_memories=lost,
        candidates=choice.candidates,
        excluded=choice.excluded,
        predicted_within_ms=choice.within_s * 1000,
        system_folded=prompt.system_folded,
        merged_turns=prompt.merged_turns,
        skipped=skipped_memories(recalled, prompt),
        recall=(*passage_parts(recalled, prompt), prefix_part(cached_tokens, look_up_ms)),
        module_fits=recalled.module_fits,
        outdated=outdated_facts(recalled, prompt),
    )


def skipped_memories(recalled: Recalled, prompt: Prompt) -> tuple[Skipped, ...]:
    """What was found and is not in the prompt, the passages without room too."""
    kept = {hit.memory.name for hit in prompt.passages}
    dropped = [
        skipped_as(hit.memory, SkipReason.TOKENS, "no room in the model's context")
        for hit in recalled.passages
        if hit.memory.name not in kept
    ]
    return (*dropped, *recalled.skipped)[:SKIPPED_MAX]


def outdated_facts(recalled: Recalled, prompt: Prompt) -> tuple[OutdatedFact, ...]:
    """What the passages correct that stand in the prompt."""
    kept = {hit.memory.name for hit in prompt.passages}
    return tuple(fact for fact in recalled.outdated if (fact.text_namespace, fact.text_memory_id) in kept)


def passage_parts(recalled: Recalled, prompt: Prompt) -> tuple[RecallPart, ...]:
    """The recall's parts, with the tokens of their passages.

    Where pinned passages are not asked for, a pinned memory that the search has found counts for the search.
    """
    asked_pinned = any(part.source is RecallSource.PINNED for part in recalled.parts)
    pinned_tokens = prompt.pinned_tokens if asked_pinned else 0
    tokens = {
        RecallSource.TEXTS: prompt.passage_tokens - pinned_tokens,
        RecallSource.PINNED: pinned_tokens,
    }
    return tuple(replace(part, prompt_tokens=tokens.get(part.source, 0)) for part in recalled.parts)


def prefix_part(cached_tokens: int, took_ms: float) -> RecallPart:
    """What is computed already. took_ms: of the look-up in Redis."""
    outcome = RecallOutcome.FOUND if cached_tokens else RecallOutcome.EMPTY
    return RecallPart(RecallSource.PREFIX, outcome, took_ms, cached_tokens)
