"""What was acknowledged outlives a Milvus Lite that fails, and a registry that is down."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from memserve.domain import Memory
from memserve.errors import MemoryNotFound, NamespaceNotFound, RegistryUnavailable, VectorStoreDamaged
from memserve.memory.texts.due import FlushPolicy
from memserve.memory.texts.embedding import BertEmbedder
from memserve.memory.texts.journal import PENDING
from memserve.memory.texts.memory import TextOptions, VectorMemory
from memserve.memory.texts.milvus import MEMORIES
from tests.kv.redis_server import RedisServer
from tests.memory.texts import handbook

TENANT = "acme"


async def open_memory(
    path: Path, embedder: BertEmbedder, server: RedisServer, quiet_s: float = 0.05
) -> VectorMemory:
    options = TextOptions(flush=FlushPolicy(quiet_s=quiet_s))
    return await VectorMemory.open(str(path / "memories.db"), embedder, server.url, options)


async def remember(memory: VectorMemory, name: str, text: str = "") -> Memory:
    return await handbook.remember(
        memory, text or f"The text of {name}.", namespace="notes", source="s", memory_id=name
    )


async def until(condition: Callable[[], bool], within_s: float = 30.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.02)


def collection(path: Path) -> Path:
    return path / "memories.db" / "collections" / MEMORIES


class Blocked:
    """A folder that Milvus Lite writes to, with a file in its place while inside: what it writes there
    fails.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._aside = folder.with_name(f"{folder.name}-aside")

    def __enter__(self) -> None:
        if self._folder.exists():
            self._folder.rename(self._aside)
        self._folder.write_text("", encoding="utf-8")

    def __exit__(self, *exception: object) -> None:
        self._folder.unlink()
        if self._aside.exists():
            self._aside.rename(self._folder)


# A log that Milvus Lite leaves open when its flush fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.asyncio
@pytest.mark.parametrize("flushed_before", [False, True], ids=["new store", "store with memories"])
async def test_a_failed_flush_loses_nothing_that_was_acknowledged(
    tmp_path: Path, embedder: BertEmbedder, redis_server: RedisServer, flushed_before: bool
) -> None:
    memory = await open_memory(tmp_path, embedder, redis_server)
    if flushed_before:
        await remember(memory, "old")
        await until(lambda: memory.settling.is_settled)
    with Blocked(collection(tmp_path) / "partitions"):
        stored = [await remember(memory, f"m{number}") for number in range(20)]
        if flushed_before:
            assert await memory.forget(TENANT, "notes", "old")
        await until(lambda: memory.settling.figures.failures > 0)
        assert [await memory.get(TENANT, "notes", note.memory_id) for note in stored] == stored
    await until(lambda: memory.settling.is_settled)
    assert redis_server.client.hlen(PENDING) == 0

    async def assert_all_there() -> None:
        hits = await handbook.search(memory, "The text of m1", namespace="notes", limit=64)
        assert {hit.memory.memory_id for hit in hits} == {note.memory_id for note in stored}
        assert [await memory.get(TENANT, "notes", note.memory_id) for note in stored] == stored
        assert await memory.counts(TENANT) == {"notes": 20}

    await assert_all_there()
    await memory.close()
    memory = await open_memory(tmp_path, embedder, redis_server)
    await assert_all_there()
    assert memory.settling.figures.lost == {}
    await memory.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.asyncio
async def test_a_write_that_milvus_refuses_is_acknowledged_found_and_replayed(
    tmp_path: Path, embedder: BertEmbedder, redis_server: RedisServer
) -> None:
    memory = await open_memory(tmp_path, embedder, redis_server)
    await remember(memory, "old")
    await until(lambda: memory.settling.is_settled)
    with Blocked(collection(tmp_path) / "wal"):
        stored = await remember(memory, "new")
        assert await memory.forget(TENANT, "notes", "old")
        await until(lambda: memory.settling.figures.failures > 0)
        assert await memory.get(TENANT, "notes", "new") == stored
        with pytest.raises(MemoryNotFound):
            await memory.get(TENANT, "notes", "old")
        hits = await handbook.search(memory, "The text of old.", namespace="notes", limit=5)
        assert "old" not in [hit.memory.memory_id for hit in hits]
    await until(lambda: memory.settling.is_settled)
    hits = await handbook.search(memory, "The text", namespace="notes", limit=5)
    assert [hit.memory.memory_id for hit in hits] == ["new"]
    await memory.close()


@pytest.mark.asyncio
async def test_nothing_leaves_the_journal_before_a_flush(
    tmp_path: Path, embedder: BertEmbedder, redis_server: RedisServer
) -> None:
    memory = await open_memory(tmp_path, embedder, redis_server, quiet_s=3600.0)
    await remember(memory, "m1")
    assert redis_server.client.hlen(PENDING) == 1
    await memory.close()
    assert redis_server.client.hlen(PENDING) == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.asyncio
async def test_a_store_whose_folder_is_gone_gets_back_what_is_in_the_journal(
    tmp_path: Path, embedder: BertEmbedder, redis_server: RedisServer
) -> None:
    memory = await open_memory(tmp_path, embedder, redis_server, quiet_s=3600.0)
    with Blocked(collection(tmp_path) / "partitions"):
        stored = [await remember(memory, f"m{number}") for number in range(3)]
        await memory.close()  # its flush fails
    shutil.rmtree(tmp_path / "memories.db")
    memory = await open_memory(tmp_path, embedder, redis_server)
    assert [await memory.get(TENANT, "notes", note.memory_id) for note in stored] == stored
    assert memory.lost(TENANT) == 0
    await memory.close()


@pytest.mark.asyncio
async def test_reads_go_on_without_the_registry_and_writes_say_so(
    tmp_path: Path, embedder: BertEmbedder, own_redis_server: RedisServer
) -> None:
    memory = await open_memory(tmp_path, embedder, own_redis_server)
    stored = await remember(memory, "m1")
    await until(lambda: memory.settling.is_settled)
    own_redis_server.stop()
    assert await memory.get(TENANT, "notes", "m1") == stored
    (hit,) = await handbook.search(memory, "The text", namespace="notes", limit=5)
    assert hit.memory == stored
    with pytest.raises(RegistryUnavailable):
        await remember(memory, "m2")
    with pytest.raises(RegistryUnavailable):
        await memory.forget(TENANT, "notes", "m1")
    assert await handbook.search(memory, "The text", namespace="other", limit=5) == []
    own_redis_server.start()
    with pytest.raises(NamespaceNotFound):
        await handbook.search(memory, "The text", namespace="other", limit=5)
    await memory.close()


@pytest.mark.asyncio
async def test_a_local_store_starts_without_the_registry_and_reads(
    tmp_path: Path, embedder: BertEmbedder, own_redis_server: RedisServer
) -> None:
    own_redis_server.start_durably()
    memory = await open_memory(tmp_path, embedder, own_redis_server)
    stored = await remember(memory, "m1")
    await memory.close()
    own_redis_server.stop()
    memory = await open_memory(tmp_path, embedder, own_redis_server)
    assert await memory.get(TENANT, "notes", "m1") == stored
    own_redis_server.start_durably()
    await until(lambda: memory.settling.is_trusted)
    assert await remember(memory, "m2")
    assert await memory.counts(TENANT) == {"notes": 2}
    await memory.close()


@pytest.mark.asyncio
async def test_the_counts_of_a_store_from_before_the_journal_are_taken_over(
    tmp_path: Path, embedder: BertEmbedder, redis_server: RedisServer
) -> None:
    memory = await open_memory(tmp_path, embedder, redis_server)
    for number in range(3):
        await remember(memory, f"m{number}")
    await handbook.remember(memory, "one", tenant="globex", namespace="other")
    await memory.close()
    redis_server.client.flushall()
    memory = await open_memory(tmp_path, embedder, redis_server)
    assert await memory.counts(TENANT) == {"notes": 3}
    assert await memory.counts("globex") == {"other": 1}
    assert await memory.forget(TENANT, "notes", "m1")
    assert await memory.counts(TENANT) == {"notes": 2}
    await memory.close()


@pytest.mark.asyncio
async def test_a_write_whose_call_was_cancelled_or_unanswered_is_all_there_or_not_at_all(
    tmp_path: Path, embedder: BertEmbedder, own_redis_server: RedisServer
) -> None:
    memory = await open_memory(tmp_path, embedder, own_redis_server, quiet_s=3600.0)
    await remember(memory, "warm")
    for number in range(10):
        call = asyncio.create_task(remember(memory, f"m{number}"))
        await asyncio.sleep(number * 0.001)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    own_redis_server.pause()
    unanswered = asyncio.create_task(remember(memory, "unanswered"))
    await asyncio.sleep(5.5)
    with pytest.raises(RegistryUnavailable):
        await unanswered
    own_redis_server.resume()
    for name in (*(f"m{number}" for number in range(10)), "unanswered"):
        stored = await remember(memory, name)
        assert await memory.get(TENANT, "notes", name) == stored
    assert await memory.counts(TENANT) == {"notes": 12}
    await memory.close()
    memory = await open_memory(tmp_path, embedder, own_redis_server)
    assert len(await handbook.search(memory, "The text", namespace="notes", limit=64)) == 12
    await memory.close()


# Damage


async def damaged_store(path: Path, embedder: BertEmbedder, server: RedisServer) -> None:
    """Twenty memories of two tenants in two flushes, all durable."""
    memory = await open_memory(path, embedder, server)
    for start in (0, 10):
        for number in range(start, start + 10):
            await remember(memory, f"m{number}")
            await handbook.remember(memory, f"text {number}", tenant="globex", namespace="other")
        await until(lambda: memory.settling.is_settled)
    await memory.close()


def truncate_manifest(store: Path) -> None:
    manifest = next(store.glob("collections/*/manifest.json"))
    manifest.write_bytes(manifest.read_bytes()[:100])


def remove_data_file(store: Path) -> None:
    next(store.glob("collections/*/partitions/*/data/*.parquet")).unlink()


def truncate_data_file(store: Path) -> None:
    file = next(store.glob("collections/*/partitions/*/data/*.parquet"))
    file.write_bytes(file.read_bytes()[:-50])


def overwrite_the_middle_of_a_data_file(store: Path) -> None:
    file = next(store.glob("collections/*/partitions/*/data/*.parquet"))
    content = bytearray(file.read_bytes())
    content[200:1200] = bytes(1000)
    file.write_bytes(content)


def remove_partition(store: Path) -> None:
    shutil.rmtree(next(store.glob("collections/*/partitions/*/data")).parent)


def remove_collection(store: Path) -> None:
    shutil.rmtree(next(store.glob("collections/*")))


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "damage",
    [
        truncate_manifest,
        remove_data_file,
        truncate_data_file,
        overwrite_the_middle_of_a_data_file,
        remove_partition,
        remove_collection,
        shutil.rmtree,
    ],
)
async def test_damage_is_noticed_and_what_is_left_stays_usable(
    tmp_path: Path, embedder: BertEmbedder, redis_server: RedisServer, damage: Callable[[Path], None]
) -> None:
    await damaged_store(tmp_path, embedder, redis_server)
    damage(tmp_path / "memories.db")
    shutil.rmtree(tmp_path / "memories.index")
    memory = await open_memory(tmp_path, embedder, redis_server)
    await until(lambda: not memory.settling.needs_mending)
    lost = memory.lost(TENANT) + memory.lost("globex")
    hits = await handbook.search(memory, "The text", namespace="notes", limit=64)
    assert lost > 0
    assert len(hits) == 20 - memory.lost(TENANT)
    assert memory.lost(TENANT, ["elsewhere"]) == 0
    stored = await remember(memory, "after")
    await until(lambda: memory.settling.is_settled)
    assert await memory.get(TENANT, "notes", "after") == stored
    await memory.close()
    memory = await open_memory(tmp_path, embedder, redis_server)
    assert memory.lost(TENANT) + memory.lost("globex") == lost
    await memory.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("damage", [truncate_data_file, shutil.rmtree])
async def test_what_milvus_lite_has_lost_comes_back_from_the_local_index(
    tmp_path: Path, embedder: BertEmbedder, redis_server: RedisServer, damage: Callable[[Path], None]
) -> None:
    await damaged_store(tmp_path, embedder, redis_server)
    damage(tmp_path / "memories.db")
    memory = await open_memory(tmp_path, embedder, redis_server)
    assert memory.settling.figures.lost == {}
    await memory.close()
    shutil.rmtree(tmp_path / "memories.index")
    memory = await open_memory(tmp_path, embedder, redis_server)
    await until(lambda: not memory.settling.needs_mending)
    assert len(await handbook.search(memory, "The text", namespace="notes", limit=64)) == 20
    await memory.close()


@pytest.mark.asyncio
async def test_a_store_in_order_has_lost_nothing(
    tmp_path: Path, embedder: BertEmbedder, redis_server: RedisServer
) -> None:
    await damaged_store(tmp_path, embedder, redis_server)
    memory = await open_memory(tmp_path, embedder, redis_server)
    assert memory.settling.figures.lost == {}
    await memory.close()


@pytest.mark.asyncio
async def test_a_store_that_cannot_be_read_at_all_is_called_damaged(
    tmp_path: Path, embedder: BertEmbedder, redis_server: RedisServer
) -> None:
    await damaged_store(tmp_path, embedder, redis_server)
    for manifest in (tmp_path / "memories.db").glob("collections/*/manifest.json*"):
        manifest.write_text("{", encoding="utf-8")
    with pytest.raises(VectorStoreDamaged, match="memserve restore"):
        await open_memory(tmp_path, embedder, redis_server)
