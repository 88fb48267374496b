"""Has what an answer used kept: passages, modules and, where the request asks for it, the prompt."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

from memserve.config import Settings
from memserve.domain import (
    CachedTokens,
    KeptAnswer,
    KeptModule,
    KeptPassage,
    KeptPrompt,
    ScoredMemory,
    TextDelta,
    Usage,
)
from memserve.gateway.decisions import Decisions
from memserve.gateway.steps.resolve import AnsweringModule
from memserve.gateway.steps.stream import RoutedRequest
from memserve.memory.answers.store import KeptAnswers
from memserve.policy.recall.why import why_found

NOT_ASKED = "the request did not ask for it (keep_prompt)"
NEVER = "this gateway keeps none (setting keep_prompts)"


@dataclass(slots=True)
class Followed:
    """What has come of an answer."""

    tokens: int = 0
    token_ids: list[int] | None = None
    """None: they are not wanted."""
    usage: Usage | None = None

    def see(self, event: TextDelta | Usage) -> None:
        if isinstance(event, Usage):
            self.usage = event
            return
        self.tokens += len(event.token_ids)
        if self.token_ids is not None:
            self.token_ids += event.token_ids


@dataclass(frozen=True, slots=True)
class Provenance:
    """Follows the answers of this gateway."""

    kept: KeptAnswers
    decisions: Decisions
    settings: Settings

    @contextlib.contextmanager
    def following(self, routed: RoutedRequest) -> Iterator[Followed]:
        """The caller shows the answer's events to what this yields. An answer without a token is not kept."""
        wanted = routed.request.keep_prompt and self.settings.keep_prompts == "on_request"
        followed = Followed(token_ids=[] if wanted else None)
        try:
            yield followed
        finally:
            if self.kept.keeps and followed.tokens:
                answer = self._answer(routed, followed)
                self.kept.keep(routed.tenant.name, answer, routed.accepted_s)

    def _answer(self, routed: RoutedRequest, followed: Followed) -> KeptAnswer:
        route, request, usage = routed.route, routed.request, followed.usage
        absent = "" if followed.token_ids is not None else NEVER if request.keep_prompt else NOT_ASKED
        return KeptAnswer(
            request_id=route.request_id,
            at_s=time.time() - (time.monotonic() - routed.accepted_s),
            model=route.model,
            worker_id=route.worker_id,
            namespaces=request.namespaces,
            recall_outcome=route.recall_outcome,
            passages=tuple(kept_passage(hit) for hit in route.passages),
            skipped=route.skipped,
            modules=tuple(kept_module(module) for module in routed.modules.modules),
            prompt_tokens=route.prompt_tokens,
            output_tokens=followed.tokens,
            cached=CachedTokens() if usage is None else usage.cached,
            outcome=self.decisions.outcome(route.request_id),
            prompt=None if followed.token_ids is None else kept_prompt(routed, followed.token_ids),
            prompt_absent=absent,
        )


def kept_passage(hit: ScoredMemory) -> KeptPassage:
    memory = hit.memory
    return KeptPassage(
        memory.namespace, memory.memory_id, memory.version, hit.score, hit.relevance, why_found(hit)
    )


def kept_module(module: AnsweringModule) -> KeptModule:
    version = module.version
    return KeptModule(
        name=version.module,
        version=version.version,
        digest=version.digest,
        kind=version.kind,
        strength=module.strength if module.row.has_strength else 1.0,
        sources=version.sources,
        parents=version.parents,
    )


def kept_prompt(routed: RoutedRequest, answer_ids: list[int]) -> KeptPrompt:
    """Its text is filled in when it is written."""
    request = routed.request
    return KeptPrompt(
        text="",
        token_ids=tuple(routed.token_ids),
        answer_ids=tuple(answer_ids),
        messages=request.messages,
        passages=tuple(hit.memory.text for hit in routed.route.passages),
        tools=request.tools,
        raw=request.raw,
    )
