"""One vLLM engine: prompts in, tokens out, modules by digest, and what it knows of its own KV and speed."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from memserve.config import Settings
from memserve.domain import CachedTokens, FinishReason, Sampling
from memserve.errors import InvalidModule, ModuleNotFound
from memserve.model_files import ModelFiles
from memserve.worker.connector import CACHED_BY_TIER
from memserve.worker.redis_tier import OWNER, owner_parameters

HASH_ALGORITHM = "sha256_cbor"
# A measurement of prefill speed needs this many computed tokens to say anything.
SPEED_SAMPLE_TOKENS = 256
SPEED_SMOOTHING = 0.3


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
            self.tokens_per_s = rate if self.tokens_per_s == 0 else self.tokens_per_s + SPEED_SMOOTHING * (rate - self.tokens_per_s)


@dataclass
class Engine:
    """A running engine.

    running: unfinished requests. waiting_tokens: request id to prompt tokens, of those without a first token yet.
    resident: digests of the modules that the engine held when it was last asked.
    """

    llm: AsyncLLM
    modules_root: Path
    running: int = 0
    waiting_tokens: dict[str, int] = field(default_factory=dict)
    prefill: Speed = field(default_factory=Speed)
    decode: Speed = field(default_factory=Speed)
    resident: tuple[str, ...] = ()
    resident_is_stale: bool = False
    _lora_ids: dict[str, int] = field(default_factory=dict)

    async def generate(
        self,
        request_id: str,
        token_ids: list[int],
        cache_salt: str,
        module_digest: str,
        sampling: Sampling,
        *,
        tenant: str = "",
        keep: bool = False,
    ) -> AsyncIterator[EngineDelta]:
        """Stream one answer; closing the iterator aborts the engine's work.

        tenant: whom the KV that reaches Redis is counted for. keep: store all of the prompt's KV there, at its first use.

        Raises ModuleNotFound or InvalidModule when the module cannot be loaded, ValueError for a request that vLLM refuses, and
        vLLM's EngineDeadError when the engine is gone.
        """
        lora = await self.load_module(module_digest) if module_digest else None
        params = SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
            stop=list(sampling.stop) or None,
            min_tokens=sampling.min_tokens,
            logprobs=0 if sampling.logprobs else None,
            output_kind=RequestOutputKind.DELTA,
            extra_args={"kv_transfer_params": {OWNER: owner_parameters(tenant, module_digest, keep)}},
        )
        prompt: Any = {"prompt_token_ids": token_ids, "cache_salt": cache_salt}
        # A step may load an adapter again that had been pushed out, and push out another.
        self.resident_is_stale |= lora is not None
        alone = not self.waiting_tokens and self.running == 0
        self.running += 1
        self.waiting_tokens[request_id] = len(token_ids)
        started_s = time.monotonic()
        first_s = 0.0
        produced = 0
        try:
            async for output in self.llm.generate(prompt, params, request_id, lora_request=lora):
                made = output.outputs[0]
                total_cached = output.num_cached_tokens or 0
                if first_s == 0.0:
                    first_s = time.monotonic()
                    self.waiting_tokens.pop(request_id, None)
                    if alone and len(token_ids) - total_cached >= SPEED_SAMPLE_TOKENS:
                        self.prefill.sample(len(token_ids) - total_cached, first_s - started_s)
                produced += len(made.token_ids)
                logprobs: tuple[float, ...] = ()
                if sampling.logprobs and made.logprobs is not None:
                    logprobs = tuple(step[token].logprob for step, token in zip(made.logprobs, made.token_ids, strict=True))
                yield EngineDelta(
                    text=made.text,
                    token_ids=tuple(made.token_ids),
                    logprobs=logprobs,
                    cached=_cached_by_tier(total_cached, output.kv_transfer_params) if output.finished else None,
                    finish_reason=_finish_reason(made.finish_reason) if output.finished else None,
                )
            self.decode.sample(produced - 1, time.monotonic() - first_s)
        finally:
            self.running -= 1
            self.waiting_tokens.pop(request_id, None)

    async def load_module(self, digest: str) -> LoRARequest:
        """Load the LoRA with this digest unless it is resident. Its name and path are made of the digest, so KV never crosses versions.

        Raises ModuleNotFound when this worker cannot see it, InvalidModule when the engine refuses it.
        """
        path = f"modules/{digest}"
        if not (self.modules_root / path / "adapter_model.safetensors").is_file():
            raise ModuleNotFound(digest)
        lora_id = self._lora_ids.setdefault(digest, len(self._lora_ids) + 1)
        request = LoRARequest(lora_name=digest, lora_int_id=lora_id, lora_path=path)
        if digest not in self.resident:
            # Loading here and not in a step: what fails in a step ends the engine.
            try:
                await self.llm.add_lora(request)
            except Exception as error:
                if self.llm.errored:
                    raise
                raise InvalidModule("module", f"the engine refuses it: {str(error).splitlines()[0]}") from error
            await self.refresh_resident()
        return request

    async def refresh_resident(self) -> None:
        """Ask the engine which modules it holds now."""
        self.resident_is_stale = False
        held = await self.llm.list_loras()
        self.resident = tuple(sorted(digest for digest, lora_id in self._lora_ids.items() if lora_id in held))

    async def warm_up(self) -> None:
        """Run one short prompt, too short for a full block, so that the first caller does not pay for start-up work."""
        async for _ in self.generate("warm-up", [1, 2, 3], "warm-up", "", Sampling(max_tokens=2)):
            pass

    def shutdown(self) -> None:
        self.llm.shutdown()


def start_engine(settings: Settings, model: ModelFiles, kv_transfer: Any, event_endpoint: str) -> AsyncLLM:
    """Start vLLM with prefix caching, multi-LoRA, the KV tiers and KV events on `event_endpoint` (ZeroMQ, full 32-byte keys)."""
    from vllm.config.kv_events import KVEventsConfig
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    arguments: dict[str, Any] = {}
    if on_cpu:
        from memserve.worker.cpu_engine import CpuExecutor

        arguments = {
            "kv_cache_memory_bytes": settings.kv_device_bytes,
            "block_size": settings.block_tokens,
            "enforce_eager": True,
            "distributed_executor_backend": CpuExecutor,
        }
    return AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=str(model.path),
            dtype=model.dtype,
            served_model_name=[model.name],
            max_model_len=model.max_context_tokens,
            max_num_seqs=settings.max_concurrent,
            enable_prefix_caching=True,
            prefix_caching_hash_algo=HASH_ALGORITHM,
            enable_lora=True,
            max_loras=settings.max_loras,
            max_cpu_loras=max(settings.max_cpu_loras, settings.max_loras),
            max_lora_rank=settings.max_lora_rank,
            kv_transfer_config=kv_transfer,
            kv_events_config=KVEventsConfig(enable_kv_cache_events=True, publisher="zmq", endpoint=event_endpoint),
            disable_log_stats=False,
            **arguments,
        )
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
