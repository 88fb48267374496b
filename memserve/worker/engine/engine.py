"""One running vLLM engine: prompts in, tokens out, modules by digest."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vllm import SamplingParams
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM

from memserve.domain import CachedTokens, EmbeddedRows, FinishReason, FreedMemory, ModuleKind, Sampling
from memserve.domain.kinds import KINDS
from memserve.domain.worker_calls import (
    PLACEHOLDER_TOKEN,
    SCORED_TOKENS_MAX,
    AnswerPart,
    AppliedModule,
    ScoringRequest,
    TokenScores,
    WorkerRequest,
)
from memserve.kv.keys import prefix_salt
from memserve.worker.engine import forced as forced_tokens
from memserve.worker.kv.cartridges import PREFIX, CartridgeUse, prefix_parameters
from memserve.worker.kv.connector import CACHED_BY_TIER
from memserve.worker.kv.tenant_kv import FREE, FREED
from memserve.worker.kv.tier_requests import OWNER, owner_parameters
from memserve.worker.modules.held import Modules
from memserve.worker.modules.kinds.embedded import EMBEDDED_TOKENS
from memserve.worker.modules.kinds.kind import EngineCall, EngineKind
from memserve.worker.modules.kinds.soft_prompt import SoftPromptKind
from memserve.worker.modules.room import ModuleRefused


@dataclass
class Engine:
    """A running engine, from `start_engine`."""

    llm: AsyncLLM
    modules: Modules
    """The modules that the engine holds."""
    kinds: Mapping[ModuleKind, EngineKind]
    """How it holds and applies each kind of them."""
    modules_root: Path

    async def generate(
        self,
        request: WorkerRequest,
        turn: contextlib.AbstractAsyncContextManager[None] | None = None,
        *,
        forced: Sequence[int] = (),
    ) -> AsyncGenerator[AnswerPart, None]:
        """Stream one answer. Closing the iterator aborts the engine's work.

        turn: entered before the engine gets the request, when its modules are held; left after it.
        forced: the tokens of the answer, where they are given. As many as `max_tokens`.
        Raises what `turn` raises, as `modules.load` when a module cannot be loaded, ValueError or vLLM's
        VLLMClientError for a request that vLLM refuses, and vLLM's EngineDeadError when the engine has died.
        """
        sampling = request.sampling
        call, kv_digest = EngineCall(), ""
        async with contextlib.AsyncExitStack() as held:
            for module in in_one_order(request.modules):
                row = KINDS[module.kind]
                if row.has_strength and module.strength == 0:
                    continue
                await held.enter_async_context(self.modules.using(module.digest, module.kind))
                folder = self.module_folder(module.digest)
                self.kinds[module.kind].apply(call, module.digest, folder, module.strength)
                if row.changes_kv and (row.is_prefix or not kv_digest):
                    kv_digest = module.digest
            check_place(call, request)
            self._check_vocabulary(request.token_ids)
            if turn is not None:
                await held.enter_async_context(turn)
            placed = placed_behind(call, request)
            owner = owner_parameters(request.tenant, kv_digest, store_whole_prompt=request.store_whole_prompt)
            params = SamplingParams(
                max_tokens=sampling.max_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=sampling.seed,
                stop=list(sampling.stop) or None,
                min_tokens=sampling.min_tokens,
                logprobs=0 if sampling.logprobs else None,
                structured_outputs=StructuredOutputsParams(json=sampling.json_schema)
                if sampling.json_schema
                else None,
                output_kind=RequestOutputKind.DELTA,
                ignore_eos=bool(forced),
                extra_args={
                    "kv_transfer_params": {OWNER: owner, **placed.kv_transfer},
                    **call.extra_args,
                    **placed.extra_args,
                    **({forced_tokens.PARAMETERS: list(forced)} if forced else {}),
                },
                **call.sampling,
            )
            # Closed by `held`, so that the engine has dropped the request before its modules may leave.
            answer = self.llm.generate(placed.prompt, params, request.request_id, lora_request=call.lora)
            outputs = await held.enter_async_context(contextlib.aclosing(answer))
            async for output in outputs:
                if call.cartridge is not None and output.outputs[0].finish_reason == "error":
                    raise ModuleRefused(call.cartridge.digest, "its KV did not come before the request")
                yield _part(output, call.cartridge, logprobs=sampling.logprobs)

    async def score(
        self,
        request: ScoringRequest,
        turn: contextlib.AbstractAsyncContextManager[None] | None = None,
        on_tokens: Callable[[int], None] = lambda tokens: None,
    ) -> TokenScores:
        """The log-probabilities of given tokens, before any logits processor. Cancelling aborts the work.

        turn: as of `generate`. on_tokens: called with how many tokens have been scored since the last call.
        Raises as `generate`, and ValueError for a continuation that cannot be scored.
        """
        self._check_scoring(request)
        # A module that leaves log-probabilities alone need not be loaded.
        moving = tuple(module for module in request.modules if KINDS[module.kind].moves_logprobs)
        answer = replace(request.answer, modules=moving)
        logprobs: list[float] = []
        cached = CachedTokens()
        async with contextlib.aclosing(self.generate(answer, turn, forced=request.continuation)) as parts:
            async for part in parts:
                logprobs += part.logprobs
                cached = part.cached or cached
                on_tokens(len(part.token_ids))
        return TokenScores(tuple(logprobs), cached)

    def _check_vocabulary(self, token_ids: Sequence[int]) -> None:
        """Raises ValueError for a token that has no embedding: it would end the engine.

        vLLM checks none behind embeddings. Where it takes embeddings it adds a token to its tokenizer, and
        lets that one through.
        """
        vocabulary = self.llm.model_config.get_vocab_size()
        if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocabulary):
            raise ValueError(f"token_ids: from 0 to {vocabulary - 1}")

    def _check_scoring(self, request: ScoringRequest) -> None:
        """Raises ValueError."""
        config = self.llm.model_config
        prompt_tokens, tokens = len(request.token_ids), len(request.continuation)
        if not prompt_tokens:
            raise ValueError("token_ids: at least one")
        if not 0 < tokens <= SCORED_TOKENS_MAX:
            raise ValueError(f"continuation: 1 to {SCORED_TOKENS_MAX} tokens, not {tokens}")
        if prompt_tokens + tokens > config.max_model_len:
            raise ValueError(
                f"continuation: {tokens} tokens behind a prompt of {prompt_tokens} are over the model's "
                f"{config.max_model_len}"
            )
        vocabulary = config.get_vocab_size()
        if not all(0 <= token < vocabulary for token in request.continuation):
            raise ValueError(f"continuation: token ids from 0 to {vocabulary - 1}")

    async def free_kv(self, tenant: str, request_id: str) -> FreedMemory:
        """Free a tenant's KV in this engine's device and host memory, while requests run.

        The wish travels as a request of one token, which is too short to be cached: the scheduler of any
        executor sees requests, and nothing else of memserve. Without a connector nothing says whose a block
        is: then all KV goes, which vLLM does only while no request runs.
        """
        params = SamplingParams(max_tokens=1, extra_args={"kv_transfer_params": {FREE: tenant}})
        prompt: Any = {"prompt_token_ids": [PLACEHOLDER_TOKEN]}
        told: list[int] | None = None
        async for output in self.llm.generate(prompt, params, request_id):
            told = (output.kv_transfer_params or {}).get(FREED) or told
        if told is None:
            is_reset = await self.llm.reset_prefix_cache()
            return FreedMemory(blocks=0, chunks=0, held=0 if is_reset else 1)
        return FreedMemory(*told)

    def module_folder(self, digest: str) -> Path:
        """Where the local copy of a module's files is."""
        return self.modules_root / "modules" / digest

    def embedded_rows(self, digest: str) -> EmbeddedRows | None:
        """The embeddings of a soft prompt that the engine holds. None: it does not hold it."""
        kind = self.kinds.get(ModuleKind.SOFT_PROMPT)
        return kind.rows(digest) if isinstance(kind, SoftPromptKind) else None

    async def warm_up(self) -> None:
        """Run one short prompt, so that the first caller does not pay for start-up work.

        It is too short for a full block, so that nothing is cached.
        """
        request = WorkerRequest("warm-up", [1, 2, 3], "", "warm-up", Sampling(max_tokens=2))
        async for _ in self.generate(request):
            pass

    def shutdown(self) -> None:
        self.llm.shutdown()


@dataclass(frozen=True, slots=True)
class Placed:
    """A prompt as vLLM takes it, with what the request says of its beginning."""

    prompt: Any
    kv_transfer: dict[str, Any] = field(default_factory=dict)
    extra_args: dict[str, Any] = field(default_factory=dict)


def in_one_order(modules: Sequence[AppliedModule]) -> list[AppliedModule]:
    """In the same order for all requests: two that each hold what the other waits for would wait for ever."""
    return sorted(modules, key=lambda module: KINDS[module.kind].number)


def check_place(call: EngineCall, request: WorkerRequest) -> None:
    """Raises ValueError for a prompt that does not leave its cartridge or its soft prompt a place, and for
    both.
    """
    cartridge, soft_prompt = call.cartridge, call.soft_prompt
    prefix = cartridge or soft_prompt
    if prefix is None:
        return
    if cartridge is not None and soft_prompt is not None:
        raise ValueError("modules: one cartridge or one soft prompt")
    placeholders = request.token_ids[: prefix.tokens]
    if len(request.token_ids) <= prefix.tokens or any(token != PLACEHOLDER_TOKEN for token in placeholders):
        kind = "soft prompt" if cartridge is None else "cartridge"
        raise ValueError(
            f"token_ids: with {kind} {prefix.digest}, {prefix.tokens} tokens {PLACEHOLDER_TOKEN} and more "
            "behind"
        )


def placed_behind(call: EngineCall, request: WorkerRequest) -> Placed:
    """The request's prompt behind its cartridge or its soft prompt, if it has one. See `check_place`.

    Called when the request's turn has come: embeddings take a row for every token.
    """
    cartridge, soft_prompt = call.cartridge, call.soft_prompt
    if soft_prompt is not None:
        prompt = soft_prompt.prompt(request.token_ids, request.cache_salt)
        return Placed(prompt, extra_args={EMBEDDED_TOKENS: soft_prompt.tokens})
    token_ids = list(request.token_ids)
    if cartridge is None:
        return Placed({"prompt_token_ids": token_ids, "cache_salt": request.cache_salt})
    salt = prefix_salt(request.cache_salt, cartridge.digest)
    return Placed(
        {"prompt_token_ids": token_ids, "cache_salt": salt},
        {PREFIX: prefix_parameters(cartridge.digest, cartridge.tokens)},
    )


def _part(output: RequestOutput, use: CartridgeUse | None, *, logprobs: bool) -> AnswerPart:
    completion, finished = output.outputs[0], output.finished
    prefix_tokens = 0 if use is None else use.tokens
    cached = _cached_by_tier(output.num_cached_tokens or 0, output.kv_transfer_params, prefix_tokens)
    return AnswerPart(
        text=completion.text,
        token_ids=tuple(completion.token_ids),
        logprobs=_chosen_logprobs(completion) if logprobs else (),
        cached=cached if finished else None,
        finish_reason=_finish_reason(completion.finish_reason) if finished else None,
    )


def _chosen_logprobs(completion: CompletionOutput) -> tuple[float, ...]:
    """The log-probability of every token of a step."""
    if completion.logprobs is None:
        return ()
    return tuple(
        step[token].logprob for step, token in zip(completion.logprobs, completion.token_ids, strict=True)
    )


def _cached_by_tier(total: int, params: dict[str, Any] | None, prefix_tokens: int) -> CachedTokens:
    """prefix_tokens: of the request's cartridge. They count apart, wherever they came from."""
    cartridge = min(prefix_tokens, total)
    total -= cartridge
    loaded = (params or {}).get(CACHED_BY_TIER, {})
    # A load that failed part-way is recomputed: never report more than vLLM itself counted.
    redis = min(loaded.get("redis", 0), total)
    host = min(loaded.get("host", 0), total - redis)
    return CachedTokens(device=total - host - redis, host=host, redis=redis, cartridge=cartridge)


def _finish_reason(reason: str | None) -> FinishReason:
    if reason == "length":
        return FinishReason.LENGTH
    if reason == "stop":
        return FinishReason.STOP
    raise RuntimeError(f"the engine ended the answer: {reason}")
