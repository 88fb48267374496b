"""Another embedding model takes the memories over while they are served."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from memserve.errors import EmbedderChanged, MemoryNotFound, VectorStoreUnavailable
from memserve.memory.texts.embedder_files import open_embedder
from memserve.memory.texts.embedding import BUNDLED, BertEmbedder
from memserve.memory.texts.encoders.cached import CachedEmbedding
from memserve.memory.texts.encoders.embedder import Floats
from memserve.memory.texts.journal import STATE
from memserve.memory.texts.memory import VectorMemory
from memserve.memory.texts.milvus import Vectors
from memserve.memory.texts.records import memory_key
from memserve.memory.texts.reindexing import EMBED_ROWS, ReindexFigures
from memserve.memory.texts.requests import MemoryName
from tests.kv.redis_server import RedisServer
from tests.memory.texts.handbook import TENANT, ids, remember, search
from tests.memory.texts.milvus_server import running_server
from tests.memory.texts.test_embedding import tiny_model

# Words of the tiny model. No two texts share one, and none is in the queries.
TEXTS = {f"m{number}": f"w{3 * number} w{3 * number + 1} w{3 * number + 2}" for number in range(12)}
QUERIES = ("w40 w41 w42", "w50 w51", "w44 w48")
MANY = 3 * EMBED_ROWS


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("embedders") / "other-model")


def opened_model(folder: Path) -> BertEmbedder:
    return BertEmbedder(open_embedder(folder))


@contextlib.asynccontextmanager
async def opened(uri: str, embedder: BertEmbedder, redis: RedisServer) -> AsyncIterator[VectorMemory]:
    memory = await VectorMemory.open(uri, embedder, redis.url)
    try:
        yield memory
    finally:
        await memory.close()


async def remember_texts(memory: VectorMemory) -> None:
    for memory_id, text in TEXTS.items():
        await remember(memory, text, memory_id=memory_id)


async def remember_many(memory: VectorMemory, count: int = MANY) -> None:
    await asyncio.gather(
        *(
            remember(memory, f"w{number % 50} number{number}x", memory_id=f"many{number}", namespace="many")
            for number in range(count)
        )
    )


async def assert_found_as_by(memory: VectorMemory, embedder: BertEmbedder) -> None:
    """The nearest text by this model is the first hit of every query."""
    while memory.settling.needs_mending:
        await asyncio.sleep(0.02)
    passages = embedder.embed(list(TEXTS.values()))
    for query in QUERIES:
        nearest = int(np.argmax(passages @ embedder.embed([query], query=True)[0]))
        found = [memory_id for memory_id in ids(await search(memory, query)) if memory_id in TEXTS]
        assert found[0] == f"m{nearest}"


@pytest.mark.asyncio
async def test_searches_find_by_the_new_model_and_the_old_one_is_refused_afterwards(
    uri: str, other: Path, embedder: BertEmbedder, redis_server: RedisServer
) -> None:
    new = opened_model(other)
    async with opened(uri, embedder, redis_server) as memory:
        await remember_texts(memory)
        await memory.forget(TENANT, "handbook", "m11")
        await memory.restore(TENANT, MemoryName("handbook", "m11"))
        await assert_found_as_by(memory, embedder)
        history = await memory.history(TENANT, "handbook", "m11")
        figures: list[int] = []
        await memory.reembed(CachedEmbedding(new), lambda step: figures.append(step.embedded))
        assert figures[-1] == len(TEXTS)
        assert memory.embedder is new
        assert not memory.settling.needs_mending
        await assert_found_as_by(memory, new)
        assert await memory.history(TENANT, "handbook", "m11") == history
        await remember(memory, "w55 w54", memory_id="later")
        assert ids(await search(memory, "w55 w54"))[0] == "later"
    with pytest.raises(EmbedderChanged, match="embedded by other-model"):
        await VectorMemory.open(uri, embedder, redis_server.url)
    async with opened(uri, new, redis_server) as memory:
        await assert_found_as_by(memory, new)
        assert (await memory.get(TENANT, "handbook", "later")).text == "w55 w54"
        assert (await memory.counts(TENANT))["handbook"] == len(TEXTS) + 1
        await memory.reembed(CachedEmbedding(embedder))
        await assert_found_as_by(memory, embedder)


@pytest.mark.asyncio
async def test_what_is_written_meanwhile_is_there_and_no_search_mixes_the_models(
    uri: str, other: Path, embedder: BertEmbedder, redis_server: RedisServer
) -> None:
    new = opened_model(other)
    async with opened(uri, embedder, redis_server) as memory:
        await remember_texts(memory)
        await remember_many(memory)
        written: list[str] = []
        done = False

        async def write() -> None:
            while not done:
                written.append(f"during{len(written)}")
                await remember(memory, f"w1 new{len(written)}", memory_id=written[-1])
                await asyncio.sleep(0.01)

        async def look() -> None:
            nearest = {
                f"m{int(np.argmax(model.embed(list(TEXTS.values())) @ model.embed([QUERIES[0]])[0]))}"
                for model in (embedder, new)
            }
            while not done:
                found = await search(memory, QUERIES[0], limit=50)
                if not memory.settling.needs_mending:
                    assert nearest & set(ids(found))

        others = [asyncio.create_task(write()), asyncio.create_task(look())]
        await memory.reembed(CachedEmbedding(new))
        done = True
        await asyncio.gather(*others)
        assert len(written) > 1
        for memory_id in written:
            await memory.get(TENANT, "handbook", memory_id)
        while memory.settling.needs_mending:
            await asyncio.sleep(0.02)
        assert (await memory.counts(TENANT))["handbook"] == len(TEXTS) + len(written)
        assert written[-1] in ids(await search(memory, f"new{len(written)}"))


class Counting(BertEmbedder):
    """Counts what it embeds."""

    def __init__(self, folder: Path) -> None:
        super().__init__(open_embedder(folder))
        self.embedded = 0

    def embed(self, texts: list[str], *, query: bool = False) -> Floats:  # type: ignore[override]
        self.embedded += len(texts)
        return super().embed(texts, query=query)


def files_with(folder: Path, text: str) -> list[Path]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return [file for file in files if text.encode() in file.read_bytes()]


async def held_by(memory: VectorMemory, vectors: Vectors, key: str) -> bool:
    """Whether the collection of this model has the record."""
    return await memory._index.write(
        "", lambda store: bool(store.beside(vectors, timeout_s=10).digests([key], timeout_s=10))
    )


@pytest.mark.asyncio
async def test_a_cancelled_reindexing_goes_on_and_what_is_erased_meanwhile_leaves_both(
    tmp_path: Path, other: Path, embedder: BertEmbedder, redis_server: RedisServer
) -> None:
    uri = str(tmp_path / "memories.db")
    async with opened(uri, embedder, redis_server) as memory:
        await remember_many(memory)
        # The first ones are embedded first.
        secret = min(range(MANY), key=lambda number: memory_key(TENANT, "many", f"many{number}"))
        begun, new = asyncio.Event(), Counting(other)

        def progress(figures: ReindexFigures) -> None:
            if figures.embedded >= 2 * EMBED_ROWS:
                begun.set()

        await memory.settling.settle_now()
        task = asyncio.create_task(memory.reembed(CachedEmbedding(new), progress))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert memory.embedder is embedder
        assert ids(await search(memory, f"number{secret}x", namespace="many"))[0] == f"many{secret}"
        key = memory_key(TENANT, "many", f"many{secret}")
        assert await held_by(memory, new.vectors, key)
        await memory.erase(TENANT, MemoryName("many", f"many{secret}"))
        await memory.settling.settle_now()
        assert not await held_by(memory, new.vectors, key)
        assert not files_with(tmp_path, f"number{secret}x")
        counting = Counting(other)
        await memory.reembed(CachedEmbedding(counting))
        assert 0 < counting.embedded <= MANY - EMBED_ROWS
        with pytest.raises(MemoryNotFound):
            await memory.get(TENANT, "many", f"many{secret}")
        assert await memory.counts(TENANT) == {"many": MANY - 1}


KILLED = textwrap.dedent(
    """
    import asyncio, sys
    from pathlib import Path
    from memserve.memory.texts.embedder_files import open_embedder
    from memserve.memory.texts.embedding import BertEmbedder
    from memserve.memory.texts.encoders.cached import CachedEmbedding
    from memserve.memory.texts.memory import VectorMemory

    async def main() -> None:
        memory = await VectorMemory.open(sys.argv[1], BertEmbedder(), sys.argv[2])

        def progress(figures):
            if figures.embedded >= 32:
                print("under way", flush=True)
                sys.stdin.read()

        target = CachedEmbedding(BertEmbedder(open_embedder(Path(sys.argv[3]))))
        await memory.reembed(target, progress)

    asyncio.run(main())
    """
)


def killed_while_it_reindexes(uri: str, redis_url: str, other: Path) -> None:
    """A process is killed after it has embedded some."""
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, uri, redis_url, str(other)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8",
    )  # fmt: skip
    assert process.stdout is not None and process.stdin is not None
    try:
        assert process.stdout.readline() == "under way\n"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        process.stdin.close()


@pytest.mark.asyncio
async def test_after_a_kill_it_goes_on(
    tmp_path: Path, other: Path, embedder: BertEmbedder, redis_server: RedisServer
) -> None:
    uri = str(tmp_path / "memories.db")
    async with opened(uri, embedder, redis_server) as memory:
        await remember_texts(memory)
        await remember_many(memory)
    await asyncio.to_thread(killed_while_it_reindexes, uri, redis_server.url, other)
    new = Counting(other)
    async with opened(uri, embedder, redis_server) as memory:
        await memory.reembed(CachedEmbedding(new))
        assert 0 < new.embedded < MANY + len(TEXTS)
        await assert_found_as_by(memory, new)
        assert (await memory.counts(TENANT)) == {"handbook": len(TEXTS), "many": MANY}


@pytest.mark.asyncio
async def test_a_start_after_a_switch_that_was_cut_short_drops_the_old_collection(
    tmp_path: Path, other: Path, embedder: BertEmbedder, redis_server: RedisServer
) -> None:
    uri, new = str(tmp_path / "memories.db"), opened_model(other)
    async with opened(uri, embedder, redis_server) as memory:
        await remember_texts(memory)
        await memory.reembed(CachedEmbedding(new))
        # As if the process had ended before it dropped the collection.
        await memory._index.write("", lambda store: store.beside(embedder.vectors, timeout_s=10))
        redis_server.client.hset(STATE, "embedder_before", "")
        assert await has_collection(memory, "")
    async with opened(uri, new, redis_server) as memory:
        assert not await has_collection(memory, "")
        assert not redis_server.client.hexists(STATE, "embedder_before")
        await assert_found_as_by(memory, new)


async def has_collection(memory: VectorMemory, model: str) -> bool:
    return await memory._index.write("", lambda store: store.has_vectors_of(model, timeout_s=10))


@pytest.mark.asyncio
async def test_another_gateway_with_the_old_model_refuses_calls_and_writes_nothing(
    tmp_path: Path, other: Path, embedder: BertEmbedder, redis_server: RedisServer
) -> None:
    new = opened_model(other)
    with running_server(tmp_path / "server") as uri:
        async with opened(uri, embedder, redis_server) as one, opened(uri, embedder, redis_server) as two:
            await remember_texts(one)
            await remember(two, "w49 w51", memory_id="of-two")
            await one.reembed(CachedEmbedding(new))
            with pytest.raises(EmbedderChanged, match="other-model"):
                await remember(two, "w1 late", memory_id="late")
            with pytest.raises((EmbedderChanged, VectorStoreUnavailable)):
                await search(two, QUERIES[0])
            assert (await one.get(TENANT, "handbook", "of-two")).text == "w49 w51"
            with pytest.raises(MemoryNotFound):
                await one.get(TENANT, "handbook", "late")


@pytest.mark.asyncio
async def test_the_bundled_model_is_named_where_it_embeds(
    tmp_path: Path, other: Path, embedder: BertEmbedder, redis_server: RedisServer
) -> None:
    new = opened_model(other)
    async with opened(str(tmp_path / "memories.db"), embedder, redis_server) as memory:
        await remember_texts(memory)
    with pytest.raises(EmbedderChanged, match=BUNDLED.partition(" (")[0]):
        await VectorMemory.open(str(tmp_path / "memories.db"), new, redis_server.url)
