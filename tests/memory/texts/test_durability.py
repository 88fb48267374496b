"""What was acknowledged lasts, flushes come when they should, and failures are said."""

import asyncio
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from memserve.domain import SearchQuery
from memserve.errors import (
    EmbedderChanged,
    MemoryNotFound,
    VectorStoreHeld,
    VectorStoreUnavailable,
)
from memserve.memory.texts.due import FlushPolicy
from memserve.memory.texts.embedder_files import Prompts, bundled_model_dir, open_embedder
from memserve.memory.texts.embedding import BertEmbedder
from memserve.memory.texts.journal_entries import Write
from memserve.memory.texts.memory import TextOptions, VectorMemory
from memserve.memory.texts.milvus import MilvusMemories
from memserve.memory.texts.requests import MemoryName
from tests.kv.redis_server import RedisServer
from tests.memory.texts.handbook import HANDBOOK, TENANT, ids, remember, remember_handbook, search

KILLED_WRITER = textwrap.dedent(
    """
    import asyncio, sys
    from memserve.domain import NewMemory
    from memserve.memory.texts.embedding import BertEmbedder
    from memserve.memory.texts.memory import VectorMemory

    async def main() -> None:
        memory = await VectorMemory.open(sys.argv[1], BertEmbedder(), sys.argv[2])
        for number in range(3):
            new = NewMemory("notes", f"note {number}", source="s", keywords=("k",), memory_id=f"m{number}")
            await memory.remember("acme", new)
        await memory.forget("acme", "notes", "m1")
        print("acknowledged", flush=True)
        await asyncio.sleep(60)

    asyncio.run(main())
    """
)


@pytest.fixture
def killed_writer(tmp_path: Path, redis_server: RedisServer) -> Iterator[subprocess.Popen[str]]:
    """A process that has stored memories in `tmp_path / memories.db`, has them acknowledged, and still
    lives.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_WRITER, str(tmp_path / "memories.db"), redis_server.url],
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "acknowledged\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.asyncio
async def test_what_was_acknowledged_outlives_a_kill(
    tmp_path: Path, redis_server: RedisServer, embedder: BertEmbedder, killed_writer: subprocess.Popen[str]
) -> None:
    killed_writer.send_signal(signal.SIGKILL)
    killed_writer.wait()
    memory = await VectorMemory.open(str(tmp_path / "memories.db"), embedder, redis_server.url)
    note = await memory.get("acme", "notes", "m0")
    assert (note.text, note.source, note.keywords, note.version) == ("note 0", "s", ("k",), 1)
    assert [len((await memory.history("acme", "notes", name)).versions) for name in ("m0", "m1")] == [1, 2]
    assert await memory.list_namespaces("acme") == ["notes"]
    assert set(ids(await search(memory, "note", namespace="notes"))) == {"m0", "m2"}
    with pytest.raises(MemoryNotFound):
        await memory.get("acme", "notes", "m1")
    await memory.close()


@pytest.mark.asyncio
async def test_a_second_process_is_refused_until_the_first_is_gone(
    tmp_path: Path, redis_server: RedisServer, embedder: BertEmbedder, killed_writer: subprocess.Popen[str]
) -> None:
    path = str(tmp_path / "memories.db")
    with pytest.raises(VectorStoreHeld):
        await VectorMemory.open(path, embedder, redis_server.url)
    killed_writer.kill()
    killed_writer.wait()
    memory = await VectorMemory.open(path, embedder, redis_server.url)
    assert await memory.count("acme", "notes") == 2
    await memory.close()


@pytest.mark.asyncio
async def test_new_rows_are_flushed_by_number_or_when_it_is_quiet(
    tmp_path: Path, redis_server: RedisServer, embedder: BertEmbedder
) -> None:
    def segments(name: str) -> int:
        return len(list((tmp_path / name).rglob("*.parquet")))

    for name, rows, quiet_s in (("rows.db", 4, 3600.0), ("quiet.db", 1000, 0.2)):
        memory = await VectorMemory.open(
            str(tmp_path / name), embedder, redis_server.url,
            TextOptions(flush=FlushPolicy(rows=rows, quiet_s=quiet_s)),
        )  # fmt: skip
        for number in range(4):
            await remember(memory, f"note {number}")
        for _ in range(200):
            if segments(name):
                break
            await asyncio.sleep(0.05)
        assert segments(name) > 0, name
        await memory.close()


@pytest.mark.asyncio
async def test_a_flush_waits_for_a_quiet_moment_but_not_for_ever(
    tmp_path: Path, redis_server: RedisServer, embedder: BertEmbedder
) -> None:
    def flushed() -> bool:
        return any(tmp_path.rglob("*.parquet"))

    memory = await VectorMemory.open(
        str(tmp_path / "memories.db"), embedder, redis_server.url,
        TextOptions(flush=FlushPolicy(rows=1000, quiet_s=0.5, within_s=1.5)),
    )  # fmt: skip
    stored = await remember(memory, "a note", tenant="acme", namespace="notes")
    remembered_s = time.monotonic()
    while not flushed():
        await memory.get("acme", "notes", stored.memory_id)
        assert time.monotonic() - remembered_s < 30
    assert time.monotonic() - remembered_s > 1.0
    await memory.close()


@pytest.mark.asyncio
async def test_reads_during_writes_and_flushes_miss_nothing_that_was_acknowledged(
    tmp_path: Path, redis_server: RedisServer, embedder: BertEmbedder
) -> None:
    memory = await VectorMemory.open(
        str(tmp_path / "memories.db"), embedder, redis_server.url,
        TextOptions(flush=FlushPolicy(rows=5, quiet_s=0.05)),
    )  # fmt: skip
    acknowledged: list[str] = []

    async def write() -> None:
        for number in range(60):
            acknowledged.append((await remember(memory, f"note {number}")).memory_id)

    async def read(writing: "asyncio.Task[None]") -> int:
        reads = 0
        while not writing.done():
            expected = set(acknowledged)
            if expected:
                hits = await search(memory, "note", limit=64)
                assert expected <= set(ids(hits))
                await memory.get(TENANT, "handbook", acknowledged[-1])
                reads += 1
            await asyncio.sleep(0)
        return reads

    async with asyncio.TaskGroup() as group:
        writing = group.create_task(write())
        reading = [group.create_task(read(writing)) for _ in range(2)]
    assert all(task.result() > 0 for task in reading)
    await memory.close()


@pytest.mark.asyncio
async def test_a_search_that_cannot_be_in_time_says_so_in_time(vector: VectorMemory) -> None:
    await remember_handbook(vector)
    with pytest.raises(VectorStoreUnavailable, match="within"):
        await vector.search(TENANT, SearchQuery(("handbook",), "gate", 5), 0.0005)
    assert ids(await search(vector, "QX7741B"))[0] == "gate"


@pytest.mark.asyncio
async def test_a_closed_memory_is_unavailable_and_may_be_closed_again(vector: VectorMemory) -> None:
    await remember(vector, "one", memory_id="m1")
    await vector.close()
    await vector.close()
    with pytest.raises(VectorStoreUnavailable, match="closed"):
        await vector.get(TENANT, "handbook", "m1")


@pytest.mark.asyncio
async def test_memories_that_another_model_embedded_are_not_searched_with_this_one(
    tmp_path: Path, own_redis_server: RedisServer, embedder: BertEmbedder
) -> None:
    """No search would find them: it is said at once, and with the old model all is there."""
    other = BertEmbedder(open_embedder(bundled_model_dir(), Prompts(query="query: ")))
    uri, redis = str(tmp_path / "memories.db"), own_redis_server.url

    async def opened(by: BertEmbedder) -> VectorMemory:
        return await VectorMemory.open(uri, by, redis)

    for by in (embedder, other, embedder):  # there is nothing yet that one of them embedded
        await (await opened(by)).close()
    memory = await opened(embedder)
    await remember_handbook(memory)
    await memory.close()
    with pytest.raises(EmbedderChanged, match=r"embedded by all-MiniLM-L6-v2 \(English\)"):
        await opened(other)
    memory = await opened(embedder)
    assert ids(await search(memory, "How do I stop the heating?"))[0] == "heating"
    for memory_id, _ in HANDBOOK:
        await memory.erase(TENANT, MemoryName("handbook", memory_id))
    await memory.close()
    memory = await opened(other)
    await remember_handbook(memory)
    assert ids(await search(memory, "How do I stop the heating?"))[0] == "heating"
    await memory.close()


@pytest.mark.asyncio
async def test_calls_go_on_while_files_are_synced_and_nothing_leaves_the_journal_before(
    tmp_path: Path, redis_server: RedisServer, embedder: BertEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, released = threading.Event(), threading.Event()
    synced = MilvusMemories.sync

    def slow(store: MilvusMemories) -> None:
        begun.set()
        assert released.wait(60)
        synced(store)

    memory = await VectorMemory.open(
        str(tmp_path / "memories.db"),
        embedder,
        redis_server.url,
        TextOptions(flush=FlushPolicy(rows=2, quiet_s=3600.0)),
    )
    monkeypatch.setattr(MilvusMemories, "sync", slow)
    first = await remember(memory, "the gate opens at nine")
    await remember(memory, "the tower is closed")
    await asyncio.to_thread(begun.wait, 60)
    assert ids(await search(memory, "when does the gate open"))[0] == first.memory_id
    later = await remember(memory, "the bridge is new")
    assert later.memory_id in ids(await search(memory, "the new bridge"))
    assert memory.settling.figures.flushes == 0
    assert len(await pending(memory)) == 3
    released.set()
    for _ in range(200):
        if memory.settling.figures.flushes:
            break
        await asyncio.sleep(0.05)
    assert memory.settling.figures.failures == 0
    assert later.memory_id in ids(await search(memory, "the new bridge"))
    await memory.close()


@pytest.mark.asyncio
async def test_a_sync_that_fails_leaves_everything_in_the_journal(
    tmp_path: Path, redis_server: RedisServer, embedder: BertEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = True

    def fails(store: MilvusMemories) -> None:
        if failing:
            raise OSError("no more room")

    memory = await VectorMemory.open(
        str(tmp_path / "memories.db"),
        embedder,
        redis_server.url,
        TextOptions(flush=FlushPolicy(rows=1, quiet_s=3600.0)),
    )
    monkeypatch.setattr(MilvusMemories, "sync", fails)
    stored = await remember(memory, "the gate opens at nine")
    for _ in range(200):
        if memory.settling.figures.failures:
            break
        await asyncio.sleep(0.05)
    assert memory.settling.figures.flushes == 0
    assert len(await pending(memory)) == 1
    assert ids(await search(memory, "when does the gate open")) == [stored.memory_id]
    failing = False
    for _ in range(400):
        if not await pending(memory):
            break
        await asyncio.sleep(0.05)
    assert await pending(memory) == []
    assert ids(await search(memory, "when does the gate open")) == [stored.memory_id]
    await memory.close()


async def pending(memory: VectorMemory) -> list[Write]:
    return [write async for page in memory._journal.pending() for write in page]
