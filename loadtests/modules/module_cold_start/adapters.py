"""The adapters that are asked for, and the time to a first token."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.harness.random_model import write_adapter
from memserve.client import AsyncClient, TextDelta
from memserve.demo import facts
from memserve.domain import ModuleVersion, Sampling

LAYERS = 6
RANK = 16
PROMPT_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Adapter:
    """A published adapter and the file of its weights in the module store."""

    version: ModuleVersion
    weights: Path

    @property
    def reference(self) -> str:
        return self.version.reference


def prompt(seed: int) -> str:
    """A text that no other seed gives, of about PROMPT_TOKENS."""
    return f"{seed} {facts.handbook(seed, PROMPT_TOKENS).text}"


async def ttft_s(client: AsyncClient, text: str, module: str, worker_id: str) -> float:
    """Raises CallFailed."""
    first_s = 0.0
    started_s = time.perf_counter()
    async for event in client.stream(
        text, module=module, worker_id=worker_id, sampling=Sampling(max_tokens=2, min_tokens=2)
    ):
        if isinstance(event, TextDelta) and first_s == 0.0:
            first_s = time.perf_counter() - started_s
    return first_s


async def publish(
    client: AsyncClient, folder: Path, store: Path, numbers: Sequence[int]
) -> tuple[list[Adapter], float]:
    """Write, publish. Returns them and the seconds that publishing one took, the median."""
    adapters, seconds = [], []
    for number in numbers:
        written = await asyncio.to_thread(write_adapter, folder / f"r{number:02}", LAYERS, RANK, number)
        started_s = time.perf_counter()
        version = await client.modules.publish(f"r{number:02}", written)
        seconds.append(time.perf_counter() - started_s)
        adapters.append(Adapter(version, store / version.digest / "adapter_model.safetensors"))
    return adapters, statistics.median(seconds)
