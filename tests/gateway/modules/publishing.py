"""Versions that these tests publish, and what became of calls."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memserve.client import AsyncClient, CallFailed
from memserve.domain import ModuleVersion, Sampling
from tests.gateway.lora_files import lora_files, write_files
from tests.gateway.running import RunningGateway

GREEDY = Sampling(max_tokens=2)
# The fake worker's one answer, to every question.
ANSWER = "t501 t502 t503"
PASSES = {
    "sets": [
        {
            "name": "recall",
            "kind": "recall",
            "probes": [
                {
                    "question": "What?",
                    "answers": [ANSWER],
                }
            ],
            "match": "contains",
        }
    ]
}
FAILS = {
    "sets": [
        {"name": "recall", "kind": "recall", "probes": [{"question": "What?", "answers": ["something else"]}]}
    ]
}


async def publish(
    gateway: RunningGateway, tmp_path: Path, seed: int, *, name: str = "tone", probes: object = None
) -> ModuleVersion:
    files = lora_files(gateway.parts.model.tensor_shapes(), seed=seed)
    if probes is not None:
        files["probes.json"] = json.dumps(probes).encode()
    return await gateway.client.modules.publish(
        name, write_files(tmp_path / f"{name}-{seed}", files), sources=["a book"], notes=f"{seed}"
    )


async def failure_of(call: object) -> CallFailed:
    with pytest.raises(CallFailed) as failed:
        await call  # type: ignore[misc]
    return failed.value


async def actions(client: AsyncClient) -> list[str]:
    return [event.action async for event in client.modules.audit()]
