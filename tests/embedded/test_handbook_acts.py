"""The acts of the demo on a real model, at a gateway with fake workers: what is asked and what is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest_asyncio

from memserve.cli.demo_handbook import act_text
from memserve.cli.terminal import PlainConsole
from memserve.client import Client
from memserve.demo import handbook
from memserve.embedded import handbook_acts as acts
from memserve.embedded.handbook_acts import CARELESS, CARTRIDGE, LORA
from memserve.memory.modules.kinds.cartridge import cartridge_files
from tests.gateway.lora_files import lora_files, write_files
from tests.gateway.modules.publishing import FAILS, PASSES
from tests.gateway.running import RunningGateway, open_gateway

FACTS = len(handbook.handbook())
TOKENS = 64


@pytest_asyncio.fixture
async def gateway(tmp_path: Path, model_dir: Path) -> AsyncIterator[RunningGateway]:
    async with open_gateway(tmp_path, model_dir, workers=[{}, {}]) as running:
        yield running


def folders(gateway: RunningGateway, tmp_path: Path) -> dict[str, Path]:
    """A LoRA and a cartridge that pass, and a LoRA that does not."""
    model = gateway.parts.model
    shape = (TOKENS, model.layers, 2, model.kv_heads, model.head_size)
    kv = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    files = {
        LORA: (lora_files(model.tensor_shapes(), seed=1), PASSES),
        CARTRIDGE: (cartridge_files(kv, model.model_digest(), model.rope), PASSES),
        CARELESS: (lora_files(model.tensor_shapes(), seed=2), FAILS),
    }
    made = json.dumps({"sources": ["a page"], "recipe": {"method": "distil"}, "cpu_s": 9.0}).encode()
    return {
        name: write_files(
            tmp_path / name, {**of, "probes.json": json.dumps(probes).encode(), "made.json": made}
        )
        for name, (of, probes) in files.items()
    }


async def test_the_acts_ask_what_they_tell(gateway: RunningGateway, tmp_path: Path) -> None:
    other = write_files(tmp_path / "other", lora_files(gateway.parts.model.tensor_shapes(), seed=3))

    def run() -> dict[str, dict[str, Any]]:
        with Client(gateway.address, timeout_s=60) as client:
            told = {
                "remember": acts.remember(client),
                "recall": acts.recall(client),
                "gates": acts.gates(client, folders(gateway, tmp_path)),
                "modules": acts.without_text(client),
            }
            # A fake worker composes the parent's own files: those of the newest version would be that one.
            client.modules.publish(LORA, other)
            return {**told, "composed": acts.composed(client)}

    figures = await asyncio.to_thread(run)
    assert figures["remember"]["memories"] == FACTS
    without, recalled = figures["recall"]["without"], figures["recall"]["with"]
    assert (without["asked"], without["right"]) == (FACTS, 0)
    assert recalled["prompt_tokens"] > without["prompt_tokens"] + 20
    gates = figures["gates"]
    assert not gates[LORA]["refusal"]
    assert gates[LORA]["gate"]["passed"]
    assert gates[CARTRIDGE]["positions"] == TOKENS
    assert "recall" in gates[CARELESS]["refusal"]
    assert not gates[CARELESS]["gate"]["passed"]
    assert figures["modules"][LORA]["prompt_tokens"] == without["prompt_tokens"]
    assert figures["composed"]["versions"] == [1, 3, 1]
    assert figures["composed"]["same_after"]
    console = PlainConsole(width=200)
    for act, of in figures.items():
        console.print(act_text(act, of))
