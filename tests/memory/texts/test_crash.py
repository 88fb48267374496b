"""kill -9 during a batch, a local index that is lost, and a Milvus that stops in the middle."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from loadtests.texts.memory_crash import crashes
from memserve.domain import NewMemory, SearchQuery
from memserve.errors import VectorStoreUnavailable
from memserve.memory.texts import visible
from memserve.memory.texts.embedding import BertEmbedder
from memserve.memory.texts.memory import TextOptions, VectorMemory
from memserve.memory.texts.requests import ListQuery
from tests.kv.redis_server import RedisServer
from tests.memory.texts.handbook import TENANT, ids, remember, search
from tests.memory.texts.milvus_server import free_port, start_server


@pytest.mark.asyncio
async def test_a_killed_batch_loses_nothing_acknowledged_and_stores_nothing_twice(tmp_path: Path) -> None:
    figures = await crashes(tmp_path, 3, seed=5)
    assert figures.acknowledged > 0
    assert (figures.lost, figures.doubled, figures.miscounted) == (0, 0, 0)


def remove(folder: Path) -> None:
    shutil.rmtree(folder)


def overwrite_rows(folder: Path) -> None:
    (folder / "rows.db").write_bytes(b"no database at all" * 1000)
    for extra in folder.glob("rows.db-*"):
        extra.unlink()


@pytest.mark.asyncio
@pytest.mark.parametrize("damage", [remove, overwrite_rows])
async def test_a_local_index_that_is_lost_is_built_again_from_milvus_lite(
    tmp_path: Path, redis_server: RedisServer, embedder: BertEmbedder, damage: Callable[[Path], None]
) -> None:
    uri = str(tmp_path / "memories.db")
    memory = await VectorMemory.open(uri, embedder, redis_server.url)
    for number in range(20):
        await remember(memory, f"Locker {number} has the key K{number:04d}.", memory_id=f"m{number}")
    await memory.forget(TENANT, "handbook", "m3")
    await memory.close()
    damage(tmp_path / "memories.index")
    memory = await VectorMemory.open(uri, embedder, redis_server.url)
    assert not memory.settling.needs_mending
    assert ids(await search(memory, "K0007", limit=1)) == ["m7"]
    assert await memory.counts(TENANT) == {"handbook": 19}
    assert len((await memory.history(TENANT, "handbook", "m3")).versions) == 2
    await memory.close()


@pytest.mark.asyncio
async def test_while_the_local_index_is_built_writes_and_reads_go_on_and_searches_say_that_they_are_cut(
    tmp_path: Path, redis_server: RedisServer, embedder: BertEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "memories.db")
    memory = await VectorMemory.open(uri, embedder, redis_server.url)
    for number in range(5):
        await remember(memory, f"Locker {number} has the key K{number:04d}.", memory_id=f"m{number}")
    await memory.close()
    shutil.rmtree(tmp_path / "memories.index")
    released, built = asyncio.Event(), visible.rebuild

    async def slow(*arguments: object) -> None:
        await released.wait()
        await built(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("memserve.memory.texts.visible.rebuild", slow)
    monkeypatch.setattr("memserve.memory.texts.memory.REBUILD_WAIT_S", 0.1)
    memory = await VectorMemory.open(uri, embedder, redis_server.url)
    assert memory.settling.needs_mending
    assert (await memory.get(TENANT, "handbook", "m2")).text.startswith("Locker 2")
    assert await memory.forget(TENANT, "handbook", "m1")
    await remember(memory, "Locker 9 has the key K0009.", memory_id="m9")
    found = await memory.search(TENANT, SearchQuery(("handbook",), "K0009", 10), 10)
    assert found.cut and ids(found.hits) == ["m9"]
    with pytest.raises(VectorStoreUnavailable, match="being built again"):
        await memory.list_memories(TENANT, ListQuery(("handbook",)))
    released.set()
    async with asyncio.timeout(20):
        while memory.settling.needs_mending:
            await asyncio.sleep(0.02)
    found = await memory.search(TENANT, SearchQuery(("handbook",), "Locker key", 10), 10)
    assert not found.cut and set(ids(found.hits)) == {"m0", "m2", "m3", "m4", "m9"}
    await memory.close()


@pytest.mark.asyncio
async def test_what_a_batch_acknowledged_before_milvus_stopped_is_there_afterwards(
    tmp_path: Path, redis_server: RedisServer, embedder: BertEmbedder
) -> None:
    port = free_port()
    server = start_server(tmp_path / "server", port)
    options = TextOptions(call_timeout_s=2.0)
    memory = await VectorMemory.open(f"http://127.0.0.1:{port}", embedder, redis_server.url, options)
    try:
        items = [NewMemory("notes", f"note {number}", memory_id=f"m{number}") for number in range(256)]
        acknowledged, refused = set(), 0
        async for outcome in memory.remember_many(TENANT, items):
            if outcome.index == 100:
                os.kill(server.pid, signal.SIGKILL)
                server.wait()
            if outcome.remembered is not None:
                acknowledged.add(f"m{outcome.index}")
            else:
                assert isinstance(outcome.error, VectorStoreUnavailable)
                refused += 1
        assert len(acknowledged) >= 128 and len(acknowledged) + refused == 256
        server = start_server(tmp_path / "server", port)
        async with asyncio.timeout(60):
            while memory.settling.unapplied or not memory.settling.is_trusted:
                await asyncio.sleep(0.1)
        found = [await memory.get(TENANT, "notes", name) for name in sorted(acknowledged)]
        assert len(found) == len(acknowledged)
    finally:
        await memory.close()
        server.kill()
        server.wait()
