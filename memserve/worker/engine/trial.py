"""The trial of a module in a running engine: does it change anything that the model says?"""

from __future__ import annotations

import random
import uuid
from typing import Any

from vllm import SamplingParams
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind

from memserve.domain import ModuleKind
from memserve.worker.engine.engine import Engine

SEED = 0
PROMPTS = 3
PROMPT_TOKENS = 16
LOGPROBS = 5
# A module that makes another token the likeliest has changed at least this much.
MIN_CHANGE = 1e-3


async def try_module(engine: Engine, digest: str, kind: ModuleKind) -> float:
    """The largest change that the module makes to the answers to canary prompts. 0: none at all.

    For a LoRA it is the change of a next token's log-probability. For a logit expert it is the change of the
    log-odds of two tokens, because vLLM reports log-probabilities from before its logits processors.

    Raises as `Modules.load`.
    """
    async with engine.modules.using(digest, kind):
        draw = random.Random(SEED)
        vocabulary = engine.llm.model_config.get_vocab_size()
        prompts = [[draw.randrange(vocabulary) for _ in range(PROMPT_TOKENS)] for _ in range(PROMPTS)]
        if kind is ModuleKind.LOGIT_EXPERT:
            return await engine.experts.effect(digest, engine.module_folder(digest), prompts)
        changes = [
            largest_change(
                await _next_token(engine, prompt, None),
                await _next_token(engine, prompt, engine.loras.request(digest)),
            )
            for prompt in prompts
        ]
    return max(changes)


async def _next_token(engine: Engine, prompt: list[int], lora: LoRARequest | None) -> dict[int, float]:
    """The likeliest next tokens and their log-probabilities, the likeliest first.

    The prompt is shorter than a block, so that it is never cached.
    """
    params = SamplingParams(
        max_tokens=1, temperature=0.0, logprobs=LOGPROBS, output_kind=RequestOutputKind.FINAL_ONLY
    )
    salted: Any = {"prompt_token_ids": prompt, "cache_salt": "_canary"}
    outputs = engine.llm.generate(salted, params, f"canary-{uuid.uuid4().hex}", lora_request=lora)
    (output,) = [output async for output in outputs]
    (step,) = output.outputs[0].logprobs
    ranked = sorted(step.items(), key=lambda item: -item[1].logprob)
    return {token: entry.logprob for token, entry in ranked}


def largest_change(base: dict[int, float], changed: dict[int, float]) -> float:
    """Of a log-probability, over the tokens that are in both. Another likeliest token is a change too.

    base, changed: log-probabilities of tokens, the likeliest token first.
    """
    both = base.keys() & changed.keys()
    largest = max((abs(base[token] - changed[token]) for token in both), default=0.0)
    if next(iter(base)) != next(iter(changed)):
        largest = max(largest, abs(max(base.values()) - max(changed.values())), MIN_CHANGE)
    return largest
