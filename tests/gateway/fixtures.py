from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from tests.gateway.running import RunningGateway, model_directory, open_gateway

StartGateway = Callable[..., Awaitable[RunningGateway]]


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_directory(tmp_path_factory.mktemp("model"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> AsyncIterator[RunningGateway]:
    """One with one worker for all tests of a module, which run in the module's loop and leave it as it
    was.
    """
    async with open_gateway(tmp_path_factory.mktemp("gateway"), model_dir) as running:
        yield running


@pytest_asyncio.fixture
async def start_gateway(
    tmp_path_factory: pytest.TempPathFactory, model_dir: Path
) -> AsyncIterator[StartGateway]:
    """Starts one of the test's own; takes what `open_gateway` takes."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(**options: object) -> RunningGateway:
            return await stack.enter_async_context(
                open_gateway(tmp_path_factory.mktemp("gateway"), model_dir, **options)
            )  # type: ignore[arg-type]

        yield start
