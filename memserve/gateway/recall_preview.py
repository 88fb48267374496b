"""What an answer would be made with: the first five steps of a request, without the answer."""

from __future__ import annotations

from dataclasses import dataclass

from memserve.domain import GenerationRequest, RecallPreview, Tenant
from memserve.errors import InvalidField
from memserve.gateway.pipeline import Pipeline
from memserve.gateway.steps.lookup import timed
from memserve.gateway.steps.recall import NO_ROOM, with_chosen
from memserve.gateway.steps.receipt import passage_parts, prefix_part, skipped_memories
from memserve.gateway.steps.resolve import resolve_modules


@dataclass(frozen=True, slots=True)
class RecallPreviews:
    """By the steps of a pipeline, in their order."""

    pipeline: Pipeline

    async def preview(self, request: GenerationRequest, tenant: Tenant) -> RecallPreview:
        """Raises as `Pipeline.generate` up to the look-up."""
        steps = self.pipeline
        with steps.inflight.one(tenant.name):
            steps.check(request.model, request.messages, tools=request.tools)
            modules = await resolve_modules(steps.modules, request, tenant.name)
            recalled = await steps.recall(request, tenant.name)
            named = request, modules
            request, modules, recalled = await with_chosen(steps.modules, *named, recalled, tenant.name)
            origin = modules.origin
            try:
                prompt = await steps.fit(request, recalled.passages, tenant.name, origin.prefix_tokens)
            except InvalidField:
                if recalled.module is None:
                    raise
                (request, modules), recalled = named, recalled.without_module(NO_ROOM)
                origin = modules.origin
                prompt = await steps.fit(request, recalled.passages, tenant.name, origin.prefix_tokens)
            cached, took_ms = await timed(steps.look_up(prompt.token_ids[:-1], tenant, origin))
            redis_tokens = max((found.redis_tokens for found in cached.values()), default=0)
            held_tokens = max(
                (
                    max(steps.pool.index.leading(found.keys).values(), default=0) * layout.block_tokens
                    for layout, found in cached.items()
                ),
                default=0,
            )
        return RecallPreview(
            outcome=recalled.outcome,
            passages=prompt.passages,
            skipped=skipped_memories(recalled, prompt),
            parts=(*passage_parts(recalled, prompt), prefix_part(max(redis_tokens, held_tokens), took_ms)),
            module_fits=recalled.module_fits,
            prompt_tokens=len(prompt.token_ids),
            redis_tokens=redis_tokens,
            held_tokens=held_tokens,
        )
