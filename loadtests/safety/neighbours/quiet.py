"""The tenant whose calls are timed."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from loadtests.safety.neighbours.tenants import WORDS
from memserve.client import AsyncClient, CallFailed
from memserve.domain import Sampling

# Seconds between quiet's calls of a kind.
GENERATE_EVERY_S, SEARCH_EVERY_S, REMEMBER_EVERY_S = 0.4, 0.25, 0.25
QUIET_ANSWER = Sampling(max_tokens=12, min_tokens=12)
QUIET_MEMORIES = 100


@dataclass
class Quiet:
    """Quiet's calls, by kind: seconds of those that were answered, and what became of the others."""

    client: AsyncClient
    rng: random.Random
    seconds: dict[str, list[float]] = field(
        default_factory=lambda: {"Generate": [], "Search": [], "Remember": []}
    )
    failed: list[str] = field(default_factory=list)
    _number: int = 0

    def text(self) -> str:
        self._number += 1
        return f"Note {self._number}: {' '.join(self.rng.choices(WORDS, k=20))}."

    async def generate(self) -> None:
        await self.client.generate(
            f"What is the code? {' '.join(self.rng.choices(WORDS, k=60))}", sampling=QUIET_ANSWER
        )

    async def search(self) -> None:
        await self.client.search(["notes"], " ".join(self.rng.choices(WORDS, k=6)), limit=4)

    async def remember(self) -> None:
        await self.client.remember("notes", self.text())

    async def run(self, seconds: float) -> None:
        """The constant mix for so long; waits for what is under way at the end."""
        async with asyncio.TaskGroup() as clocks:
            clocks.create_task(self._every(GENERATE_EVERY_S, "Generate", self.generate, seconds))
            clocks.create_task(self._every(SEARCH_EVERY_S, "Search", self.search, seconds))
            clocks.create_task(self._every(REMEMBER_EVERY_S, "Remember", self.remember, seconds))

    async def _every(
        self, interval_s: float, kind: str, call: Callable[[], Awaitable[None]], seconds: float
    ) -> None:
        begun_s = time.monotonic()
        async with asyncio.TaskGroup() as calls:
            for number in range(int(seconds / interval_s)):
                await asyncio.sleep(
                    max(0.0, begun_s + (number + self.rng.random()) * interval_s - time.monotonic())
                )
                calls.create_task(self._timed(kind, call))

    async def _timed(self, kind: str, call: Callable[[], Awaitable[None]]) -> None:
        begun_s = time.monotonic()
        try:
            await call()
            self.seconds[kind].append(time.monotonic() - begun_s)
        except CallFailed as error:
            self.failed.append(f"{kind}: {error}")
