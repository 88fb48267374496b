"""A store of memserve 0.1.0 becomes one of today, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from memserve.domain import MemoryState, ScoredMemory, SearchQuery
from memserve.errors import VectorStoreUnavailable
from memserve.memory.texts.embedding import BertEmbedder
from memserve.memory.texts.index import OWN_WORK, VectorIndex
from memserve.memory.texts.journal import Journal
from memserve.memory.texts.journal_entries import Quotas
from memserve.memory.texts.memory import VectorMemory
from memserve.memory.texts.migration import MigrationFigures, move_old_memories
from memserve.memory.texts.milvus import MilvusAccess, MilvusFailed, MilvusMemories, Vectors
from memserve.memory.texts.milvus_lite_folder import MARK_OF_A_DROP
from memserve.memory.texts.milvus_old import OLD_MEMORIES
from memserve.memory.texts.records import Record
from tests.kv.redis_server import RedisServer
from tests.memory.texts.journaled import append, written
from tests.memory.texts.milvus_server import running_server
from tests.memory.texts.old_store import write_old_store
from tests.memory.texts.store_records import (
    CREATED_S,
    DIM,
    changed,
    memory_of,
    record_of,
    scope_of,
    vector_of,
)

TENANT = "acme"
TIMEOUT_S = 30.0
VECTORS = Vectors(DIM)


def old_records(count: int) -> list[Record]:
    return [
        record_of(
            TENANT if number % 3 else "globex",
            memory_of(f"m{number}", f"note {number} of the harbour", keywords=("key",), source=f"s{number}"),
            vector_of(number),
        )
        for number in range(count)
    ]


@contextlib.asynccontextmanager
async def gateway(uri: str, redis: RedisServer) -> AsyncIterator[tuple[VectorIndex, Journal]]:
    """An index and a journal."""
    index, journal = (
        VectorIndex(uri, VECTORS, None, is_searched=True, call_timeout_s=10),
        Journal(redis.url, Quotas()),
    )
    try:
        yield index, journal
    finally:
        await index.close(clean=False)
        await journal.close()


def kept_in(store: MilvusMemories) -> dict[str, Record]:
    return {record.key: record for page in store.records(timeout_s=TIMEOUT_S) for record in page}


def assert_moved(store: MilvusMemories, records: list[Record]) -> None:
    assert store.old is None
    kept = kept_in(store)
    assert {key: record.history for key, record in kept.items()} == {
        record.key: record.history for record in records
    }
    for record in records:
        vector = kept[record.key].vector
        assert vector is not None and record.vector is not None
        np.testing.assert_allclose(vector, record.vector, atol=1e-6)


@pytest.mark.asyncio
async def test_every_memory_of_the_old_store_is_moved_and_found(uri: str, redis_server: RedisServer) -> None:
    records = old_records(700)
    write_old_store(uri, DIM, records)
    figures = MigrationFigures()
    async with gateway(uri, redis_server) as (index, journal):
        await move_old_memories(index, journal, figures)
        assert (figures.memories, figures.looked_at, figures.copied) == (700, 700, 700)
        assert not figures.is_under_way
        store = await index.write(OWN_WORK, lambda store: store)
        assert_moved(store, records)
        hits = store.nearest(scope_of(TENANT), vector_of(1), 1, timeout_s=TIMEOUT_S)
        assert [hit.memory for hit in hits] == [records[1].memory]
        assert records[1].memory.created_s == records[1].memory.updated_s == CREATED_S
        again = MigrationFigures()
        await move_old_memories(index, journal, again)
        assert again == MigrationFigures(), "there is nothing left to move"


@pytest.mark.asyncio
async def test_writes_before_the_end_of_the_move_win(uri: str, redis_server: RedisServer) -> None:
    records = old_records(40)
    write_old_store(uri, DIM, records)
    async with gateway(uri, redis_server) as (index, journal):
        store = await index.write(OWN_WORK, lambda store: store)
        newer = changed(records[0], text="what was written since")
        fresh = record_of(TENANT, memory_of("fresh"), vector_of(1000))
        store.put([newer, fresh], timeout_s=TIMEOUT_S)
        store.delete([records[1].key], timeout_s=TIMEOUT_S)
        keys = [records[0].key, records[1].key, records[2].key, fresh.key]
        assert store.get_many(keys, timeout_s=TIMEOUT_S) == {
            record.key: record.without_vector() for record in (newer, records[2], fresh)
        }, "what has not been moved is read all the same"
        with pytest.raises(MilvusFailed, match="are being moved"):
            store.nearest(scope_of(TENANT), vector_of(1), 1, timeout_s=TIMEOUT_S)
        # A write that waits in the journal is brought by whoever wrote it.
        assert await append(journal, TENANT, written(TENANT, records[4].memory, vector_of(4)))
        await move_old_memories(index, journal, MigrationFigures())
        assert_moved(store, [newer, fresh, records[2], records[3], *records[5:]])


async def moved_in_the_end(index: VectorIndex, journal: Journal) -> None:
    """As settling does it: what fails is tried again. The server of Milvus Lite fails when two clients create
    or drop one collection at once.
    """
    for _ in range(5):
        try:
            return await move_old_memories(index, journal, MigrationFigures())
        except MilvusFailed:
            await asyncio.sleep(0.5)
    raise AssertionError("the memories are not moved")


@pytest.mark.asyncio
async def test_two_gateways_move_the_same_store_at_once(tmp_path: Path, redis_server: RedisServer) -> None:
    records = old_records(900)
    with running_server(tmp_path / "server") as uri:
        write_old_store(uri, DIM, records)
        async with gateway(uri, redis_server) as first, gateway(uri, redis_server) as second:
            await asyncio.gather(*(moved_in_the_end(*one) for one in (first, second)))
            for index, _ in (first, second):
                assert_moved(await index.write(OWN_WORK, lambda store: store), records)


def kill_after(lines: int, command: list[str]) -> None:
    """Run a command, and kill it when it has printed so many lines."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") as child:
        assert child.stdout is not None
        for _ in range(lines):
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)


@pytest.mark.asyncio
async def test_a_move_that_is_killed_anywhere_goes_on(tmp_path: Path, redis_server: RedisServer) -> None:
    uri, records = str(tmp_path / "memories.db"), old_records(400)
    write_old_store(uri, DIM, records, flush=False)
    command = [sys.executable, "-m", "tests.memory.texts.migrate", uri, redis_server.url, str(DIM)]
    # In the middle of the pages, at the end of the pages, before the old collection is dropped.
    for lines in (3, 9, 14):
        kill_after(lines, command)
    async with gateway(uri, redis_server) as (index, journal):
        await move_old_memories(index, journal, figures := MigrationFigures())
        assert figures.copied < len(records), "what was moved is not moved again"
        assert_moved(await index.write(OWN_WORK, lambda store: store), records)


def test_what_a_killed_drop_left_is_removed(tmp_path: Path) -> None:
    uri = str(tmp_path / "memories.db")
    write_old_store(uri, DIM, old_records(10))
    folder = tmp_path / "memories.db"
    (folder / f"{MARK_OF_A_DROP}{OLD_MEMORIES}").touch()
    (folder / "collections" / OLD_MEMORIES / "manifest.json").unlink()
    store = MilvusMemories(uri, MilvusAccess(), VECTORS, timeout_s=TIMEOUT_S)
    assert store.old is None
    assert not (folder / "collections" / OLD_MEMORIES).exists()
    assert list(folder.glob(f"{MARK_OF_A_DROP}*")) == []
    store.close()


@pytest.mark.asyncio
async def test_a_gateway_starts_with_the_old_store_and_finds_all(
    tmp_path: Path, redis_server: RedisServer, embedder: BertEmbedder
) -> None:
    uri = str(tmp_path / "memories.db")
    texts = ["The north gate opens with the code QX7741B.", "Lunch is served at noon."]
    vectors = embedder.embed(texts, query=False)
    write_old_store(
        uri,
        embedder.vectors.dim,
        [
            record_of(TENANT, memory_of(f"m{number}", text), vectors[number])
            for number, text in enumerate(texts)
        ],
    )
    memory = await VectorMemory.open(uri, embedder, redis_server.url)
    assert memory.settling.figures.migration == MigrationFigures(2, 2, 2)
    hits: Sequence[ScoredMemory] = ()
    async with asyncio.timeout(30):
        while len(hits) < len(texts):  # the local index is built in the background
            with contextlib.suppress(VectorStoreUnavailable):
                hits = (await memory.search(TENANT, SearchQuery(("notes",), "QX7741B", 5), 10)).hits
            await asyncio.sleep(0.05)
    assert hits[0].memory.text == texts[0]
    assert hits[0].memory.state is MemoryState.LIVE
    assert await memory.counts(TENANT) == {"notes": 2}
    await memory.close()
