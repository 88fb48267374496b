"""One running vLLM engine: prompts in, tokens out, modules by digest, and how fast it is."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm import SamplingParams
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from memserve.domain import CachedTokens, FinishReason, ModuleKind, Sampling
from memserve.worker.engine.speed import Speed
from memserve.worker.kv.connector import CACHED_BY_TIER
from memserve.worker.kv.tier_requests import OWNER, owner_parameters
from memserve.worker.modules.held import ExpertHolder, LoraHolder, Modules
from memserve.worker.modules.kinds.logit_expert import expert_parameters

# A prefill that computes fewer tokens says nothing about the engine's speed.
SPEED_SAMPLE_TOKENS = 256


@dataclass(frozen=True, slots=True)
class EngineDelta:
    """A step of an answer."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    cached: CachedTokens | None = None
    """Set in the last step."""
    finish_reason: FinishReason | None = None
    """Set in the last step."""


@dataclass
class Engine:
    """A running engine, from `start_engine`."""

    llm: AsyncLLM
    modules: Modules
    """The modules that the engine holds."""
    loras: LoraHolder
    """How it holds LoRA adapters."""
    experts: ExpertHolder
    """How it holds logit experts."""
    modules_root: Path
    running: int = 0
    """Unfinished requests."""
    waiting_tokens: dict[str, int] = field(default_factory=dict)
    """Prompt tokens of the requests without a first token yet, by request id."""
    prefill: Speed = field(default_factory=Speed)
    decode: Speed = field(default_factory=Speed)

    async def generate(
        self,
        request_id: str,
        token_ids: list[int],
        cache_salt: str,
        module_digest: str,
        sampling: Sampling,
        *,
        expert: tuple[str, float] | None = None,
        tenant: str = "",
        store_whole_prompt: bool = False,
    ) -> AsyncGenerator[EngineDelta, None]:
        """Stream one answer. Closing the iterator aborts the engine's work.

        expert: digest of a logit expert, and alpha; alpha 0 is none. tenant: whom the KV that reaches Redis
        is counted for. store_whole_prompt: store all of its KV in Redis, at its first use.

        Raises as `modules.load` when a module cannot be loaded, ValueError or vLLM's VLLMClientError for a
        request that vLLM refuses, and vLLM's EngineDeadError when the engine has died.
        """
        async with contextlib.AsyncExitStack() as held:
            lora, arguments = None, {}
            if module_digest:
                await held.enter_async_context(self.modules.using(module_digest, ModuleKind.LORA))
                lora = self.loras.request(module_digest)
            if expert is not None and expert[1] != 0:
                await held.enter_async_context(self.modules.using(expert[0], ModuleKind.LOGIT_EXPERT))
                arguments = expert_parameters(*expert, str(self.module_folder(expert[0])))
            params = SamplingParams(
                max_tokens=sampling.max_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=sampling.seed,
                stop=list(sampling.stop) or None,
                min_tokens=sampling.min_tokens,
                logprobs=0 if sampling.logprobs else None,
                output_kind=RequestOutputKind.DELTA,
                extra_args={
                    "kv_transfer_params": {
                        OWNER: owner_parameters(tenant, module_digest, store_whole_prompt=store_whole_prompt)
                    },
                    **arguments,
                },
            )
            prompt: Any = {"prompt_token_ids": token_ids, "cache_salt": cache_salt}
            # Closed by `held`, so that the engine has dropped the request before its modules may leave.
            outputs = await held.enter_async_context(
                contextlib.aclosing(self.llm.generate(prompt, params, request_id, lora_request=lora))
            )
            deltas = self._measured(request_id, len(token_ids), outputs, logprobs=sampling.logprobs)
            async for delta in await held.enter_async_context(contextlib.aclosing(deltas)):
                yield delta

    async def _measured(
        self, request_id: str, prompt_tokens: int, outputs: AsyncIterator[RequestOutput], *, logprobs: bool
    ) -> AsyncGenerator[EngineDelta, None]:
        """vLLM's outputs as deltas. Counts the request while it is under way, and takes its speed."""
        alone = not self.waiting_tokens and self.running == 0
        self.running += 1
        self.waiting_tokens[request_id] = prompt_tokens
        started_s = time.monotonic()
        first_s = 0.0
        produced = 0
        try:
            async for output in outputs:
                completion = output.outputs[0]
                total_cached = output.num_cached_tokens or 0
                if first_s == 0.0:
                    first_s = time.monotonic()
                    self.waiting_tokens.pop(request_id, None)
                    if alone and prompt_tokens - total_cached >= SPEED_SAMPLE_TOKENS:
                        self.prefill.sample(prompt_tokens - total_cached, first_s - started_s)
                produced += len(completion.token_ids)
                yield EngineDelta(
                    text=completion.text,
                    token_ids=tuple(completion.token_ids),
                    logprobs=_chosen_logprobs(completion) if logprobs else (),
                    cached=_cached_by_tier(total_cached, output.kv_transfer_params)
                    if output.finished
                    else None,
                    finish_reason=_finish_reason(completion.finish_reason) if output.finished else None,
                )
            self.decode.sample(produced - 1, time.monotonic() - first_s)
        finally:
            self.running -= 1
            self.waiting_tokens.pop(request_id, None)

    def module_folder(self, digest: str) -> Path:
        """Where the local copy of a module's files is."""
        return self.modules_root / "modules" / digest

    async def warm_up(self) -> None:
        """Run one short prompt, so that the first caller does not pay for start-up work.

        It is too short for a full block, so that nothing is cached.
        """
        async for _ in self.generate("warm-up", [1, 2, 3], "warm-up", "", Sampling(max_tokens=2)):
            pass

    def shutdown(self) -> None:
        self.llm.shutdown()


def _chosen_logprobs(completion: CompletionOutput) -> tuple[float, ...]:
    """The log-probability of every token of a step."""
    if completion.logprobs is None:
        return ()
    return tuple(
        step[token].logprob for step, token in zip(completion.logprobs, completion.token_ids, strict=True)
    )


def _cached_by_tier(total: int, params: dict[str, Any] | None) -> CachedTokens:
    loaded = (params or {}).get(CACHED_BY_TIER, {})
    # A load that failed part-way is recomputed: never report more than vLLM itself counted.
    redis = min(loaded.get("redis", 0), total)
    host = min(loaded.get("host", 0), total - redis)
    return CachedTokens(device=total - host - redis, host=host, redis=redis)


def _finish_reason(reason: str | None) -> FinishReason:
    if reason == "length":
        return FinishReason.LENGTH
    if reason == "stop":
        return FinishReason.STOP
    raise RuntimeError(f"the engine ended the answer: {reason}")
