"""One embedder for all tests, and a vector memory over real Milvus Lite for each."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from memserve.memory.texts.embedding import BertEmbedder
from memserve.memory.texts.memory import VectorMemory
from tests.kv.redis_server import RedisServer
from tests.memory.texts.milvus_server import running_server


@pytest.fixture(scope="session")
def embedder() -> BertEmbedder:
    return BertEmbedder()


@pytest.fixture(params=["lite", "server"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Of Milvus Lite, and of a Milvus server."""
    if request.param == "lite":
        yield str(tmp_path / "memories.db")
    else:
        with running_server(tmp_path / "server") as address:
            yield address


@pytest_asyncio.fixture
async def vector(
    tmp_path: Path, embedder: BertEmbedder, redis_server: RedisServer
) -> AsyncIterator[VectorMemory]:
    memory = await VectorMemory.open(str(tmp_path / "memories.db"), embedder, redis_server.url)
    yield memory
    await memory.close()
