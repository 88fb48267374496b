"""Memories are embedded again by another model while the first one serves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from memserve.domain import Memory, MemoryState
from memserve.errors import VectorStoreUnavailable
from memserve.memory.texts.embedder_files import open_embedder
from memserve.memory.texts.embedding import BertEmbedder
from memserve.memory.texts.index import OWN_WORK, VectorIndex
from memserve.memory.texts.milvus import MilvusMemories, Vectors
from memserve.memory.texts.records import Record
from memserve.memory.texts.reindexing import EMBED_ROWS, ReindexFigures, Reindexing
from tests.memory.texts.old_store import write_old_store
from tests.memory.texts.store_records import DIM, changed, memory_of, record_of, scope_of, vector_of
from tests.memory.texts.test_embedding import tiny_model

TENANT = "acme"
TIMEOUT_S = 30.0
BEFORE = Vectors(DIM)
AFTER = Vectors(8, "other")


def other_vector(memory: Memory) -> npt.NDArray[np.float32]:
    """What the second model makes of a memory."""
    return vector_of(sum(memory.text.encode()), AFTER.dim)


class Embedding:
    """The second model. It counts what it embeds."""

    def __init__(self, then: Callable[[], Awaitable[None]] | None = None) -> None:
        self.embedded = 0
        self.then = then

    async def __call__(self, memories: Sequence[Memory]) -> npt.NDArray[np.float32]:
        self.embedded += len(memories)
        if self.then is not None:
            await self.then()
        return np.stack([other_vector(memory) for memory in memories])


@contextlib.asynccontextmanager
async def opened(uri: str, vectors: Vectors = BEFORE) -> AsyncIterator[VectorIndex]:
    index = VectorIndex(uri, vectors, None, is_searched=True, call_timeout_s=10)
    try:
        yield index
    finally:
        await index.close(clean=False)


def records_of(count: int) -> list[Record]:
    return [
        record_of(TENANT, memory_of(f"m{number}", f"note {number} of the harbour"), vector_of(number))
        for number in range(count)
    ]


async def store_of(index: VectorIndex) -> MilvusMemories:
    return await index.write(OWN_WORK, lambda store: store)


def assert_all_there(store: MilvusMemories, records: Sequence[Record]) -> None:
    kept = {record.key: record for page in store.records(timeout_s=TIMEOUT_S) for record in page}
    assert {key: record.history for key, record in kept.items()} == {
        record.key: record.history for record in records
    }
    for record in kept.values():
        assert record.vector is not None
        np.testing.assert_allclose(record.vector, other_vector(record.memory), atol=1e-6)


@pytest.mark.asyncio
async def test_all_is_embedded_again_with_its_history_and_the_old_collection_is_dropped(uri: str) -> None:
    records = records_of(100)
    records[3] = changed(records[3], state=MemoryState.FORGOTTEN)
    records[4] = changed(records[4], text="another text")
    told: list[tuple[int, int]] = []

    def progress(figures: ReindexFigures) -> None:
        told.append((figures.embedded, figures.memories))

    async with opened(uri) as index:
        store = await store_of(index)
        store.put(records, timeout_s=TIMEOUT_S)
        work = Reindexing(index, BEFORE, AFTER, Embedding(), progress=progress)
        await work.fill()
        hit = store.nearest(scope_of(TENANT), vector_of(1), 1, timeout_s=TIMEOUT_S)[0]
        assert hit.memory == records[1].memory, "the old model serves meanwhile"
        await work.finish()
        assert told[0] == (EMBED_ROWS, 100)
        assert told[-1] == (100, 100)
    async with opened(uri, AFTER) as index:
        store = await store_of(index)
        await Reindexing(index, BEFORE, AFTER, Embedding()).drop_before()
        assert not store.has_vectors_of("", timeout_s=TIMEOUT_S)
        assert_all_there(store, records)
        query = other_vector(records[7].memory)
        assert store.nearest(scope_of(TENANT), query, 1, timeout_s=TIMEOUT_S)[0].cosine > 0.999
        # What is asked for again finds nothing to embed, and deletes nothing.
        with pytest.raises(VectorStoreUnavailable, match="no memories that the model before"):
            await Reindexing(index, BEFORE, AFTER, Embedding()).fill()
        assert_all_there(store, records)


@pytest.mark.asyncio
async def test_what_is_written_meanwhile_is_caught_up(uri: str) -> None:
    records = records_of(70)
    fresh = record_of(TENANT, memory_of("fresh", "written meanwhile"), vector_of(1000))
    newer = changed(records[0], text="corrected meanwhile")

    async with opened(uri) as index:
        store = await store_of(index)
        store.put(records, timeout_s=TIMEOUT_S)
        writes = [
            lambda store: store.put([fresh, newer], timeout_s=TIMEOUT_S),
            lambda store: store.delete([records[1].key, records[2].key], timeout_s=TIMEOUT_S),
        ]

        async def write() -> None:
            if writes:
                await index.write(OWN_WORK, writes.pop(0))

        embedding = Embedding(write)
        work = Reindexing(index, BEFORE, AFTER, embedding)
        await work.fill()
        await index.write(OWN_WORK, lambda store: store.delete([records[3].key], timeout_s=TIMEOUT_S))
        await work.finish()
        assert work.figures.deleted >= 1
        assert_all_there(store.beside(AFTER, timeout_s=TIMEOUT_S), [fresh, newer, *records[4:]])


@pytest.mark.asyncio
async def test_a_run_that_was_cancelled_goes_on_where_it_ended(tmp_path: Path) -> None:
    uri, records = str(tmp_path / "memories.db"), records_of(4 * EMBED_ROWS)
    async with opened(uri) as index:
        (await store_of(index)).put(records, timeout_s=TIMEOUT_S)

        async def stall() -> None:
            if first.embedded > 2 * EMBED_ROWS:
                await asyncio.Event().wait()

        first = Embedding(stall)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                await Reindexing(index, BEFORE, AFTER, first).fill()
    # The process may have been killed here.
    async with opened(uri) as index:
        second = Embedding()
        work = Reindexing(index, BEFORE, AFTER, second)
        await work.fill()
        await work.finish()
        assert second.embedded == 2 * EMBED_ROWS, "what was embedded is not embedded again"
        assert_all_there((await store_of(index)).beside(AFTER, timeout_s=TIMEOUT_S), records)


@pytest.mark.asyncio
async def test_a_write_while_it_is_finished_is_told(tmp_path: Path) -> None:
    async with opened(str(tmp_path / "memories.db")) as index:
        (await store_of(index)).put(records_of(3), timeout_s=TIMEOUT_S)
        number = 0

        async def write() -> None:
            nonlocal number
            number += 1
            record = record_of(TENANT, memory_of(f"late{number}"), vector_of(number))
            await index.write(OWN_WORK, lambda store: store.put([record], timeout_s=TIMEOUT_S))

        with pytest.raises(VectorStoreUnavailable, match="were written while"):
            await Reindexing(index, BEFORE, AFTER, Embedding(write)).finish()


@pytest.mark.asyncio
async def test_memories_of_an_older_memserve_are_moved_first(tmp_path: Path) -> None:
    uri = str(tmp_path / "memories.db")
    write_old_store(uri, DIM, records_of(3))
    async with opened(uri) as index:
        with pytest.raises(VectorStoreUnavailable, match="are being moved"):
            await Reindexing(index, BEFORE, AFTER, Embedding()).fill()


@pytest.mark.asyncio
async def test_from_the_bundled_model_to_one_of_another_size(tmp_path: Path, embedder: BertEmbedder) -> None:
    other = BertEmbedder(open_embedder(tiny_model(tmp_path / "tiny")))
    assert other.vectors.dim != embedder.vectors.dim
    texts = ["The north gate opens with the code QX7741B.", "Lunch is served at noon."]
    records = [
        record_of(TENANT, memory_of(f"m{number}", text), embedder.embed([text])[0])
        for number, text in enumerate(texts)
    ]

    async def embed(memories: Sequence[Memory]) -> npt.NDArray[np.float32]:
        return other.embed([memory.text for memory in memories])

    uri = str(tmp_path / "memories.db")
    async with opened(uri, embedder.vectors) as index:
        (await store_of(index)).put(records, timeout_s=TIMEOUT_S)
        work = Reindexing(index, embedder.vectors, other.vectors, embed)
        await work.fill()
        await work.finish()
        await work.drop_before()
    async with opened(uri, other.vectors) as index:
        store = await store_of(index)
        (hit,) = store.nearest(scope_of(TENANT), other.embed([texts[0]])[0], 1, timeout_s=TIMEOUT_S)
        assert hit.memory == records[0].memory
        assert hit.cosine > 0.999
