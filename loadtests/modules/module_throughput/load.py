"""The requests of a round, and answering them."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from loadtests.harness.figures import report
from memserve.demo import facts
from memserve.domain import Message, Role
from memserve.gateway.tokenizer import ChatTokenizer

ADAPTERS = 8
# BATCH: answers that the engine decodes at the same time, two of each adapter. IN_FLIGHT: requests that are
# under way. They are more than the batch, so that the engine never waits for a request.
BATCH, IN_FLIGHT = 16, 24
PROMPT_TOKENS = 96
# Every answer has one of these lengths, so that they do not all end in the same step.
ANSWER_TOKENS = range(16, 49)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request."""

    text: str
    token_ids: list[int]
    """Of the prompt that the text becomes."""
    answer_tokens: int
    adapter: int | None
    """The number of the adapter; None for the base."""


Ask = Callable[[Asked], Awaitable[int]]
"""Answers one request. Returns the tokens of the answer; -1 for an answer that failed or ended early."""


async def drive(ask: Ask, requests: Sequence[Asked]) -> float:
    """Answer all, IN_FLIGHT at a time. Returns output tokens a second; what failed counts nothing."""
    free = asyncio.Semaphore(IN_FLIGHT)

    async def answered(request: Asked) -> int:
        async with free:
            return await ask(request)

    started_s = time.perf_counter()
    tokens = await asyncio.gather(*(answered(request) for request in requests))
    seconds = time.perf_counter() - started_s
    if min(tokens) < 0:
        report(f"{sum(count < 0 for count in tokens)} of {len(tokens)} answers failed")
    return sum(max(count, 0) for count in tokens) / seconds


def requests_of(tokenizer: ChatTokenizer, seed: int, count: int, *, with_adapters: bool) -> list[Asked]:
    """New prompts of about PROMPT_TOKENS, the adapters in rotation."""
    draw = random.Random(seed)
    requests = []
    for number in range(count):
        text = f"{seed} {number} {facts.handbook(seed * 1000 + number, PROMPT_TOKENS).text}"
        token_ids = tokenizer.encode([Message(Role.USER, text)])
        requests.append(
            Asked(text, token_ids, draw.choice(ANSWER_TOKENS), number % ADAPTERS if with_adapters else None)
        )
    return requests
