from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from memserve.client import AsyncClient
from tests.gateway.running import RunningGateway, open_gateway


@pytest_asyncio.fixture
async def gateway(tmp_path: Path, model_dir: Path) -> AsyncIterator[RunningGateway]:
    async with open_gateway(tmp_path, model_dir, workers=[{}, {}], canary_interval_s=0.2) as running:
        yield running


@pytest.fixture
def client(gateway: RunningGateway) -> AsyncClient:
    return gateway.client
