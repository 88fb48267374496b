"""The golden prefix: at start a worker stores KV that it has just computed and reads it back, from the device to Redis and back."""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from enum import Enum

from memserve.domain import CachedTokens, Sampling
from memserve.worker.engine import Engine

log = logging.getLogger("memserve.worker.golden")

CHUNKS = 2
OUTPUT_TOKENS = 4
# Not a tenant's name: those begin with a letter or a digit.
TENANT = "_golden"
STORED_WITHIN_S = 5.0
POLL_S = 0.1


class Golden(Enum):
    """What became of it. UNTESTED: nothing came back, because Redis does not answer or is full."""

    SAME = "same"
    DIFFERENT = "different"
    UNTESTED = "untested"


async def check_golden_prefix(engine: Engine, *, vocabulary: int, chunk_tokens: int, exact: bool) -> Golden:
    """Ask the same prompt with its KV in device memory, and with its KV from Redis.

    Both split the prompt at the same token, so that the log-probabilities are equal bit for bit when the KV is. exact: False for a codec
    that loses precision; then the tokens must be equal. The engine answers nobody else meanwhile, and holds nothing afterwards.
    """
    draw = random.Random(0)
    prompt = [draw.randrange(vocabulary) for _ in range(CHUNKS * chunk_tokens + 1)]
    # Nobody else's: what another kind of machine computed differs in the last bits, and that is no fault.
    salt = uuid.uuid4().hex

    async def ask() -> tuple[tuple[int, ...], tuple[float, ...], CachedTokens]:
        sampling = Sampling(max_tokens=OUTPUT_TOKENS, min_tokens=OUTPUT_TOKENS, logprobs=True)
        deltas = [delta async for delta in engine.generate(uuid.uuid4().hex, prompt, salt, "", sampling, tenant=TENANT, keep=True)]
        tokens = tuple(token for delta in deltas for token in delta.token_ids)
        logprobs = tuple(logprob for delta in deltas for logprob in delta.logprobs)
        return tokens, logprobs, deltas[-1].cached or CachedTokens()

    await ask()
    tokens, logprobs, cached = await ask()
    assert cached.device == len(prompt) - 1, f"the engine finds {cached} of its own prefix of {len(prompt)} tokens"
    deadline_s = time.monotonic() + STORED_WITHIN_S
    while time.monotonic() < deadline_s:
        await asyncio.sleep(POLL_S)
        await engine.llm.reset_prefix_cache(reset_connector=True)
        from_redis, its_logprobs, cached = await ask()
        if cached.redis == len(prompt) - 1:
            same = from_redis == tokens and (its_logprobs == logprobs or not exact)
            await engine.llm.reset_prefix_cache(reset_connector=True)
            return Golden.SAME if same else Golden.DIFFERENT
    return Golden.UNTESTED
