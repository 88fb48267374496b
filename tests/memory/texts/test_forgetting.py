"""A forgotten memory is gone, over real Milvus Lite."""

from pathlib import Path

import pytest

from memserve.errors import (
    MemoryNotFound,
)
from memserve.memory.texts.embedding import BertEmbedder
from memserve.memory.texts.memory import VectorMemory
from tests.kv.redis_server import RedisServer
from tests.memory.texts.handbook import HANDBOOK, TENANT, ids, remember, remember_handbook, search


@pytest.mark.asyncio
@pytest.mark.parametrize("flushed", [False, True], ids=["unflushed", "flushed"])
async def test_a_forgotten_memory_is_gone_everywhere_at_once_and_after_reopening(
    tmp_path: Path, redis_server: RedisServer, embedder: BertEmbedder, flushed: bool
) -> None:
    path = str(tmp_path / "memories.db")
    memory = await VectorMemory.open(path, embedder, redis_server.url)
    await remember_handbook(memory)
    if flushed:
        await memory.close()
        memory = await VectorMemory.open(path, embedder, redis_server.url)
    assert await memory.forget(TENANT, "handbook", "gate") is True

    async def assert_gone() -> None:
        with pytest.raises(MemoryNotFound):
            await memory.get(TENANT, "handbook", "gate")
        assert "gate" not in ids(await search(memory, "QX7741B"))
        assert "gate" not in ids(await search(memory, "The north gate opens with the code", limit=64))
        assert await memory.count(TENANT, "handbook") == len(HANDBOOK) - 1

    await assert_gone()
    assert await memory.forget(TENANT, "handbook", "gate") is False
    await memory.close()
    memory = await VectorMemory.open(path, embedder, redis_server.url)
    await assert_gone()
    await memory.close()


@pytest.mark.asyncio
async def test_a_forgotten_id_may_be_used_again(vector: VectorMemory) -> None:
    await remember(vector, "the old text about otters", memory_id="m1")
    assert await vector.forget(TENANT, "handbook", "m1")
    await remember(vector, "the new text about badgers", memory_id="m1")
    assert (await vector.get(TENANT, "handbook", "m1")).text == "the new text about badgers"
    (hit,) = await search(vector, "otters badgers")
    assert hit.memory.text == "the new text about badgers"


@pytest.mark.asyncio
async def test_a_namespace_outlives_its_last_memory(vector: VectorMemory) -> None:
    await remember(vector, "one", memory_id="m1")
    await vector.forget(TENANT, "handbook", "m1")
    assert await search(vector, "one") == []
    assert await vector.count(TENANT, "handbook") == 0
    assert await vector.list_namespaces(TENANT) == ["handbook"]


@pytest.mark.asyncio
async def test_forgetting_in_an_unknown_namespace_forgets_nothing(vector: VectorMemory) -> None:
    assert await vector.forget(TENANT, "nowhere", "m1") is False
    assert await vector.list_namespaces(TENANT) == []
