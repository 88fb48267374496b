"""What a cartridge costs: beside the document as a warm prefix, beside the base, and on a fresh worker."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.harness.figures import report
from loadtests.modules.cartridge_serving.traffic import ASKERS
from loadtests.modules.cartridge_serving.world import ANSWER_TOKENS, World
from memserve.client import AsyncClient
from memserve.domain import Message, Role, Sampling

NAME = "north"
VARIANTS = "variants"
SAMPLING = Sampling(max_tokens=ANSWER_TOKENS, min_tokens=ANSWER_TOKENS)


@dataclass(frozen=True, slots=True)
class Speed:
    """Medians over rounds."""

    tokens_per_s: float
    """Of requests with a cartridge."""
    warm_prefix_tokens_per_s: float
    """Of the same requests with the document in their system text, which is computed already."""
    ttft_ms: float
    base_ttft_ms: float
    fresh_ttft_ms: float
    """Of the first request for a cartridge that its worker does not hold."""
    local_ttft_ms: float
    """Of the next one, whose blocks are in the engine's memory."""

    @property
    def to_warm_prefix(self) -> float:
        return self.tokens_per_s / self.warm_prefix_tokens_per_s

    @property
    def ttft_to_base(self) -> float:
        return self.ttft_ms / self.base_ttft_ms

    @property
    def supply_ms(self) -> float:
        return self.fresh_ttft_ms - self.local_ttft_ms


async def measured(client: AsyncClient, world: World, folder: Path, rounds: int, variants: int) -> Speed:
    texts = world.short_texts
    document = world.documents[NAME].text
    await _rate(client, texts, document)  # the prefix becomes warm, and so does the cartridge
    await _rate(client, texts, "")
    rates: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        # By turns, because the machine's speed drifts.
        for system, into in ((document, rates[1]), ("", rates[0]))[:: 1 if number % 2 else -1]:
            into.append(await _rate(client, texts, system))
        report(f"  round {number + 1}: {rates[0][-1]:.0f} tokens/s, {rates[1][-1]:.0f} with a warm prefix")
    ttfts: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for text in texts:
            for modules, into in (([NAME], ttfts[0]), ([], ttfts[1]))[:: 1 if number % 2 else -1]:
                answer = await client.generate(text, modules=modules, sampling=SAMPLING)
                into.append(answer.usage.ttft_ms)
    fresh, local = await _supplied(client, world, folder, texts[0], variants)
    return Speed(*map(statistics.median, (*rates, *ttfts, fresh, local)))


async def _rate(client: AsyncClient, texts: Sequence[str], document: str) -> float:
    """Output tokens a second. document: the system text; empty for the cartridge in its place."""
    waiting = iter(texts)
    tokens = 0

    async def asker() -> None:
        nonlocal tokens
        for text in waiting:
            messages = [Message(Role.USER, text)]
            if document:
                messages.insert(0, Message(Role.SYSTEM, document))
            modules = [] if document else [NAME]
            answer = await client.generate(messages, modules=modules, sampling=SAMPLING)
            tokens += len(answer.token_ids)

    started_s = time.monotonic()
    await asyncio.gather(*(asker() for _ in range(ASKERS)))
    return tokens / (time.monotonic() - started_s)


async def _supplied(
    client: AsyncClient, world: World, folder: Path, text: str, count: int
) -> tuple[list[float], list[float]]:
    """TTFTs of the first and of the second request for cartridges that no worker has loaded."""
    fresh: list[float] = []
    local: list[float] = []
    for number in range(count):
        version = await client.modules.publish(VARIANTS, world.variant(folder, number))
        await client.modules.unload(version.reference)
        first, second = [
            await client.generate(text, modules=[version.reference], sampling=SAMPLING) for _ in range(2)
        ]
        # Else the second one was fresh too.
        if first.route.worker_id == second.route.worker_id:
            fresh.append(first.usage.ttft_ms)
            local.append(second.usage.ttft_ms)
    return fresh, local
