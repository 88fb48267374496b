"""What tests of a request share: how one is asked, and what comes back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from memserve.client import CallFailed
from memserve.domain import (
    Sampling,
)
from memserve.kv.keys import block_keys
from tests.contract.scripted_worker import BLOCK_TOKENS, Script
from tests.gateway.lora_files import lora_files, write_files
from tests.gateway.running import RunningGateway, publish_live

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
LONG = "the gate of the north tower opens at nine and closes at five " * 12
GREEDY = Sampling(max_tokens=4)
HANGS = Script(hangs_after=0)


async def failure_of(call: Any) -> CallFailed:
    with pytest.raises(CallFailed) as failed:
        await call
    return failed.value


async def events_of(stream: AsyncIterator[Any], into: list[Any] | None = None) -> list[Any]:
    """Every event; those before a failure are in `into`."""
    events = [] if into is None else into
    async for event in stream:
        events.append(event)
    return events


def prompt_keys(gateway: RunningGateway, text: str) -> list[bytes]:
    """Of the full blocks that a worker would hold after this prompt."""
    return block_keys(gateway.token_ids(text)[:-1], BLOCK_TOKENS, lora=None, cache_salt=gateway.cache_salt)


async def published(gateway: RunningGateway, tmp_path: Any, name: str = "tone") -> str:
    folder = write_files(tmp_path / name, lora_files(gateway.parts.model.tensor_shapes()))
    return (await publish_live(gateway.client, name, folder)).digest


# The answer
