"""The golden prefix: a worker proves at its start that KV survives the way to Redis and back.

It stores KV that it has just computed, reads it back, and compares the answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
import uuid
from enum import Enum

from memserve.domain import CachedTokens, Sampling
from memserve.domain.worker_calls import WorkerRequest
from memserve.errors import CacheUnavailable
from memserve.kv.keys import CacheNamespace, block_keys, chunk_keys, member
from memserve.memory.prefixes.memory import ActivationMemory
from memserve.model.files import ModelFiles
from memserve.worker.engine.engine import Engine

log = logging.getLogger("memserve.worker.engine.golden")

CHUNKS = 2
OUTPUT_TOKENS = 4
# Cannot be a tenant's name: those begin with a letter or a digit.
TENANT = "_golden"
STORED_WITHIN_S = 5.0
# Of the first token's log-probability, natural; int8 moves it by hundredths.
TOLERANCE = 0.5
POLL_S = 0.1


class Golden(Enum):
    """What the check has found."""

    SAME = "same"
    DIFFERENT = "different"
    UNTESTED = "untested"
    """Nothing came back, because Redis does not answer or is full."""
    TOO_LONG = "too long"
    """No chunk fits the context."""


async def check_golden_prefix(
    engine: Engine, memory: ActivationMemory, namespace: CacheNamespace, model: ModelFiles, *, exact: bool
) -> Golden:
    """Ask the same prompt with its KV in device memory, and with its KV from Redis.

    Both split the prompt at the same token, so that the log-probabilities are equal bit for bit when the KV
    is. exact: False for a codec that loses precision; then the first log-probability may differ a little. The
    engine must answer nobody else meanwhile. Neither the engine nor Redis keeps anything of the check.
    """
    chunk_tokens = namespace.chunk_tokens
    chunks = min(CHUNKS, (model.max_context_tokens - OUTPUT_TOKENS - 1) // chunk_tokens)
    if chunks < 1:
        return Golden.TOO_LONG
    draw = random.Random(0)
    prompt = [draw.randrange(model.vocab_size) for _ in range(chunks * chunk_tokens + 1)]
    # A salt of its own: KV that another kind of machine computed differs in the last bits, which is no fault.
    salt = uuid.uuid4().hex

    async def ask() -> tuple[tuple[int, ...], tuple[float, ...], CachedTokens]:
        sampling = Sampling(max_tokens=OUTPUT_TOKENS, min_tokens=OUTPUT_TOKENS, logprobs=True)
        request = WorkerRequest(uuid.uuid4().hex, prompt, TENANT, salt, sampling, store_whole_prompt=True)
        parts = [part async for part in engine.generate(request)]
        tokens = tuple(token for part in parts for token in part.token_ids)
        logprobs = tuple(logprob for part in parts for logprob in part.logprobs)
        return tokens, logprobs, parts[-1].cached or CachedTokens()

    async def clean_up() -> None:
        await engine.llm.reset_prefix_cache(reset_connector=True)
        blocks = block_keys(prompt, namespace.block_size_tokens, lora=None, cache_salt=salt)
        with contextlib.suppress(CacheUnavailable):
            await memory.evict_prefix(
                TENANT,
                [member(namespace.digest, key) for key in chunk_keys(blocks, namespace.blocks_per_chunk)],
            )

    await ask()
    tokens, logprobs, cached = await ask()
    assert cached.device == len(prompt) - 1, (
        f"the engine finds {cached} of its own prefix of {len(prompt)} tokens"
    )
    deadline_s = time.monotonic() + STORED_WITHIN_S
    while time.monotonic() < deadline_s:
        await asyncio.sleep(POLL_S)
        await engine.llm.reset_prefix_cache(reset_connector=True)
        from_redis, its_logprobs, cached = await ask()
        if cached.redis == len(prompt) - 1:
            await clean_up()
            same = (
                (from_redis, its_logprobs) == (tokens, logprobs)
                if exact
                else abs(its_logprobs[0] - logprobs[0]) < TOLERANCE
            )
            return Golden.SAME if same else Golden.DIFFERENT
    await clean_up()
    return Golden.UNTESTED
