"""One vLLM engine: prompts in, tokens out, modules by digest, and what it knows of its own KV and speed."""

from __future__ import annotations

import contextlib
import random
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from memserve.config import Settings
from memserve.domain import CachedTokens, FinishReason, ModuleKind, Sampling
from memserve.memory.modules.blobs.store import BlobStore
from memserve.model.architectures import no_lora_reason
from memserve.model.files import ModelFiles
from memserve.worker.kv.connector import CACHED_BY_TIER
from memserve.worker.kv.tier_requests import OWNER, owner_parameters
from memserve.worker.modules.copies import LocalCopies
from memserve.worker.modules.extension import WORKER_EXTENSION
from memserve.worker.modules.held import ExpertHolder, LoraHolder, Modules
from memserve.worker.modules.kinds.logit_expert import LIMIT, PROCESSOR, expert_parameters
from memserve.worker.modules.room import Holder

HASH_ALGORITHM = "sha256_cbor"
# A measurement of prefill speed needs this many computed tokens to say anything.
SPEED_SAMPLE_TOKENS = 256
SPEED_SMOOTHING = 0.3
CANARY_SEED = 0
CANARY_PROMPTS = 3
CANARY_TOKENS = 16
CANARY_LOGPROBS = 5
# What another likeliest token counts as at least.
LEAST_CHANGE = 1e-3


@dataclass(frozen=True, slots=True)
class EngineDelta:
    """A step of an answer. `cached` and `finish_reason` are set on the last one."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    cached: CachedTokens | None = None
    finish_reason: FinishReason | None = None


@dataclass
class Speed:
    """A smoothed rate, tokens a second; 0 before the first sample."""

    tokens_per_s: float = 0.0

    def sample(self, tokens: int, seconds: float) -> None:
        if tokens > 0 and seconds > 0:
            rate = tokens / seconds
            self.tokens_per_s = (
                rate
                if self.tokens_per_s == 0
                else self.tokens_per_s + SPEED_SMOOTHING * (rate - self.tokens_per_s)
            )


@dataclass
class Engine:
    """A running engine.

    running: unfinished requests. waiting_tokens: request id to prompt tokens, of those without a first token
    yet. modules: those that it holds; `loras` and `experts` are how it does.
    """

    llm: AsyncLLM
    modules: Modules
    loras: LoraHolder
    experts: ExpertHolder
    modules_root: Path
    running: int = 0
    waiting_tokens: dict[str, int] = field(default_factory=dict)
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
        keep: bool = False,
    ) -> AsyncGenerator[EngineDelta, None]:
        """Stream one answer; closing the iterator aborts the engine's work.

        expert: digest of a logit expert, and alpha; alpha 0 is none. tenant: whom the KV that reaches Redis
        is counted for. keep: store all of the prompt's KV there, at its first use.

        Raises as `modules.load` when a module cannot be loaded, ValueError or vLLM's VLLMClientError for a
        request that vLLM refuses, and its EngineDeadError when the engine is gone.
        """
        async with contextlib.AsyncExitStack() as held:
            lora, arguments = None, {}
            if module_digest:
                await held.enter_async_context(self.modules.using(module_digest, ModuleKind.LORA))
                lora = self.loras.request(module_digest)
            if expert is not None and expert[1] != 0:
                await held.enter_async_context(self.modules.using(expert[0], ModuleKind.LOGIT_EXPERT))
                arguments = expert_parameters(*expert, str(self._folder(expert[0])))
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
                    "kv_transfer_params": {OWNER: owner_parameters(tenant, module_digest, keep)},
                    **arguments,
                },
            )
            prompt: Any = {"prompt_token_ids": token_ids, "cache_salt": cache_salt}
            # Closed here, so that the engine has dropped the request before its modules may leave.
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
                made = output.outputs[0]
                total_cached = output.num_cached_tokens or 0
                if first_s == 0.0:
                    first_s = time.monotonic()
                    self.waiting_tokens.pop(request_id, None)
                    if alone and prompt_tokens - total_cached >= SPEED_SAMPLE_TOKENS:
                        self.prefill.sample(prompt_tokens - total_cached, first_s - started_s)
                produced += len(made.token_ids)
                chosen: tuple[float, ...] = ()
                if logprobs and made.logprobs is not None:
                    chosen = tuple(
                        step[token].logprob for step, token in zip(made.logprobs, made.token_ids, strict=True)
                    )
                yield EngineDelta(
                    text=made.text,
                    token_ids=tuple(made.token_ids),
                    logprobs=chosen,
                    cached=_cached_by_tier(total_cached, output.kv_transfer_params)
                    if output.finished
                    else None,
                    finish_reason=_finish_reason(made.finish_reason) if output.finished else None,
                )
            self.decode.sample(produced - 1, time.monotonic() - first_s)
        finally:
            self.running -= 1
            self.waiting_tokens.pop(request_id, None)

    async def try_module(self, digest: str, kind: ModuleKind) -> float:
        """What the module does to canary prompts: the largest change of a next token's log-probability, or,
        of a logit expert, of the log-odds of two tokens. 0: nothing at all.

        Raises as `modules.load`.
        """
        async with self.modules.using(digest, kind):
            draw = random.Random(CANARY_SEED)
            vocabulary = self.llm.model_config.get_vocab_size()
            prompts = [
                [draw.randrange(vocabulary) for _ in range(CANARY_TOKENS)] for _ in range(CANARY_PROMPTS)
            ]
            if kind is ModuleKind.LOGIT_EXPERT:
                # vLLM's log-probabilities are those before logits processors.
                return await self.experts.effect(digest, self._folder(digest), prompts)
            changes = [
                largest_change(
                    await self._next_token(prompt, None),
                    await self._next_token(prompt, self.loras.request(digest)),
                )
                for prompt in prompts
            ]
        return max(changes)

    async def _next_token(self, prompt: list[int], lora: LoRARequest | None) -> dict[int, float]:
        """The likeliest next tokens and their log-probabilities, the likeliest first. The prompt is shorter
        than a block: never cached.
        """
        params = SamplingParams(
            max_tokens=1, temperature=0.0, logprobs=CANARY_LOGPROBS, output_kind=RequestOutputKind.FINAL_ONLY
        )
        salted: Any = {"prompt_token_ids": prompt, "cache_salt": "_canary"}
        (output,) = [
            each
            async for each in self.llm.generate(
                salted, params, f"canary-{uuid.uuid4().hex}", lora_request=lora
            )
        ]
        (step,) = output.outputs[0].logprobs
        return {
            token: each.logprob for token, each in sorted(step.items(), key=lambda item: -item[1].logprob)
        }

    def _folder(self, digest: str) -> Path:
        return self.modules_root / "modules" / digest

    async def warm_up(self) -> None:
        """Run one short prompt, too short for a full block, so that the first caller does not pay for
        start-up work.
        """
        async for _ in self.generate("warm-up", [1, 2, 3], "warm-up", "", Sampling(max_tokens=2)):
            pass

    def shutdown(self) -> None:
        self.llm.shutdown()


def start_engine(settings: Settings, model: ModelFiles, kv_transfer: Any, event_endpoint: str) -> Engine:
    """Start vLLM with prefix caching, multi-LoRA, logit experts, the KV tiers and KV events.

    event_endpoint: where the KV events go out, ZeroMQ, with full 32-byte keys.
    The process must be in `settings.modules_root`: adapters go by paths relative to it.
    """
    from vllm.config.kv_events import KVEventsConfig

    on_cpu = current_platform.is_cpu()
    arguments: dict[str, Any] = {}
    if on_cpu:
        from memserve.worker.engine.cpu import CpuExecutor

        arguments = {
            "kv_cache_memory_bytes": settings.kv_device_bytes,
            "block_size": settings.block_tokens,
            "enforce_eager": True,
            "distributed_executor_backend": CpuExecutor,
        }
    if settings.max_experts:
        arguments.update(logits_processors=[PROCESSOR], additional_config={LIMIT: settings.max_experts})
    held_loras = max(settings.max_cpu_loras, settings.max_loras)
    absent = absent_kinds(settings, model)
    if ModuleKind.LORA not in absent:
        arguments.update(
            enable_lora=True,
            max_loras=settings.max_loras,
            max_cpu_loras=held_loras,
            max_lora_rank=settings.max_lora_rank,
        )
    llm = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=str(model.path),
            dtype=model.dtype,
            served_model_name=[model.name],
            max_model_len=model.max_context_tokens,
            max_num_seqs=settings.max_concurrent,
            enable_prefix_caching=True,
            prefix_caching_hash_algo=HASH_ALGORITHM,
            worker_extension_cls=WORKER_EXTENSION,
            kv_transfer_config=kv_transfer,
            kv_events_config=KVEventsConfig(
                enable_kv_cache_events=True, publisher="zmq", endpoint=event_endpoint
            ),
            disable_log_stats=False,
            **arguments,
        )
    )
    loras, experts = LoraHolder(llm, held_loras), ExpertHolder(llm, settings.max_experts)
    holders: dict[ModuleKind, Holder] = {ModuleKind.LORA: loras, ModuleKind.LOGIT_EXPERT: experts}
    for kind in absent:
        del holders[kind]
    blobs = BlobStore(settings.module_store_url, settings.modules_root / "modules")
    return Engine(llm, Modules(LocalCopies(blobs), holders, absent), loras, experts, settings.modules_root)


def absent_kinds(settings: Settings, model: ModelFiles) -> dict[ModuleKind, str]:
    """The kinds of modules that the model is served without, and why."""
    absent = {}
    reason = "setting max_loras is 0" if settings.max_loras == 0 else no_lora_reason(model.architecture)
    if not reason and model.has_experts and current_platform.is_cpu():
        reason = "vLLM's LoRA for a mixture of experts does not run on the CPU"
    if reason:
        absent[ModuleKind.LORA] = reason
    if settings.max_experts == 0:
        absent[ModuleKind.LOGIT_EXPERT] = "setting max_experts is 0"
    return absent


def largest_change(base: dict[int, float], changed: dict[int, float]) -> float:
    """Of a log-probability, over the tokens that are in both; the likeliest come first. Another likeliest
    token is a change too.
    """
    both = base.keys() & changed.keys()
    largest = max((abs(base[token] - changed[token]) for token in both), default=0.0)
    if next(iter(base)) != next(iter(changed)):
        largest = max(largest, abs(max(base.values()) - max(changed.values())), LEAST_CHANGE)
    return largest


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
