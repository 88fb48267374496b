"""One embedder for all tests, and a vector memory over real Milvus Lite for each."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from memserve.memory.texts.embedding import BertEmbedder
from memserve.memory.texts.memory import VectorMemory
from tests.kv.redis_server import RedisServer


@pytest.fixture(scope="session")
def embedder() -> BertEmbedder:
    return BertEmbedder()


@pytest_asyncio.fixture
async def vector(
    tmp_path: Path, embedder: BertEmbedder, redis_server: RedisServer
) -> AsyncIterator[VectorMemory]:
    memory = await VectorMemory.open(str(tmp_path / "memories.db"), embedder, redis_server.url)
    yield memory
    await memory.close()
