"""What the steps of this engine cost: measured once, before it serves.

How long one prompt takes at three lengths, and a step at two batch sizes and two sizes of KV. What other
processes make of it later is learned while it serves: `policy/routing/engine_load.py`.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid

from memserve.domain import Sampling
from memserve.domain.worker_calls import WorkerRequest
from memserve.policy.routing.costs import EngineCosts
from memserve.worker.engine.engine import Engine
from memserve.worker.engine.golden import TENANT

SHORT_TOKENS, MIDDLE_TOKENS, LONG_TOKENS = 16, 256, 2048
LONGEST_S = 1.5
"""The long prompt is shorter on an engine that would take longer for it."""
BATCH = 8
STEPS = 8
REPEATS = 2
QUICK_S, QUICK_REPEATS = 0.1, 4
"""Of a prompt that takes less, in which another process shows most."""
LEAST_ANSWER = 0.02
"""Of a step, an answer takes this part at least: on a small model the difference is lost in noise."""
LEAST_TOKEN = 0.2
"""Of a long prompt, what does not grow with the context takes this part at least. A stall in the short
prompt would make it nothing, and then a step without attention would seem to cost nothing."""
LEAST_S = 1e-7
"""No cost is less: a difference of two measurements may be negative."""


async def measured_costs(engine: Engine) -> EngineCosts:
    """The engine must answer nobody else meanwhile. It keeps nothing of the prompts, which nobody else has.

    Raises what the engine raises.
    """
    config = engine.llm.vllm_config
    longest = config.model_config.max_model_len - STEPS - 1
    draw = random.Random(0)
    vocabulary = engine.llm.model_config.get_vocab_size()

    async def ask(prompt_tokens: int, output_tokens: int) -> tuple[float, float]:
        """The times of the first token and of the last, from the call on."""
        prompt = [draw.randrange(vocabulary) for _ in range(prompt_tokens)]
        sampling = Sampling(max_tokens=output_tokens, min_tokens=output_tokens)
        request = WorkerRequest(uuid.uuid4().hex, prompt, TENANT, uuid.uuid4().hex, sampling)
        began_s, first_s = time.monotonic(), 0.0
        async for _ in engine.generate(request):
            first_s = first_s or time.monotonic() - began_s
        return first_s, time.monotonic() - began_s

    async def prompt_s(tokens: int) -> float:
        taken: list[float] = []
        while len(taken) < REPEATS or (len(taken) < QUICK_REPEATS and min(taken) < QUICK_S):
            taken.append((await ask(tokens, 1))[0])
        return min(taken)

    async def step_s(prompt_tokens: int, answers: int) -> float:
        taken = []
        for _ in range(REPEATS):
            times = await asyncio.gather(*(ask(prompt_tokens, STEPS) for _ in range(answers)))
            first_s, last_s = max(first for first, _ in times), max(last for _, last in times)
            taken.append((last_s - first_s) / (STEPS - 1))
        return min(taken)

    short, middle = min(SHORT_TOKENS, longest), min(MIDDLE_TOKENS, longest)
    short_s, middle_s = await prompt_s(short), await prompt_s(middle)
    speed = max(middle - short, 1) / max(middle_s - short_s, LEAST_S)
    long = max(middle, min(LONG_TOKENS, longest, int(speed * LONGEST_S)))
    long_s = await prompt_s(long) if long > middle else middle_s
    one_s, batch_s, long_context_s = await step_s(short, 1), await step_s(short, BATCH), await step_s(long, 1)
    await engine.llm.reset_prefix_cache(reset_connector=True)
    token_s, context_s = _prompt_costs((short, short_s), (middle, middle_s), (long, long_s))
    answer_s = max((batch_s - one_s) / (BATCH - 1), LEAST_ANSWER * one_s)
    fixed_s = max(one_s - answer_s, LEAST_S)
    return EngineCosts(
        step_s=fixed_s,
        token_s=token_s,
        context_s=context_s,
        answer_s=answer_s,
        kv_token_s=max((long_context_s - one_s) / max(long - short, 1), 0.0),
        step_limit_s=fixed_s + token_s * config.scheduler_config.max_num_batched_tokens,
    )


def _prompt_costs(
    short: tuple[int, float], middle: tuple[int, float], long: tuple[int, float]
) -> tuple[float, float]:
    """Seconds for a token, and for a token for each one before it: t(n) = c + token * n + context * n² / 2.

    Each is a length in tokens and its seconds.
    """
    (a, a_s), (b, b_s), (c, c_s) = short, middle, long
    first_slope = (b_s - a_s) / max(b - a, 1)
    if c <= b:
        return max(first_slope, LEAST_S), 0.0
    second_slope = (c_s - b_s) / (c - b)
    whole_slope = max((c_s - a_s) / (c - a), LEAST_S)
    half = (c + a) / 2
    context_s = min(
        max((second_slope - first_slope) * 2 / (c - a), 0.0), (1 - LEAST_TOKEN) * whole_slope / half
    )
    return max(whole_slope - context_s * half, LEAST_S), context_s
