"""A Milvus behind a URI: Milvus Lite's own server in another process."""

import asyncio
import contextlib
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from memserve.domain import SearchQuery
from memserve.errors import MemoryNotFound, VectorStoreUnavailable
from memserve.memory.texts.embedding import BertEmbedder
from memserve.memory.texts.journal import Journal
from memserve.memory.texts.journal_entries import Quotas
from memserve.memory.texts.memory import TextOptions, VectorMemory
from tests.kv.redis_server import RedisServer
from tests.memory.texts.handbook import TENANT, ids, remember, search
from tests.memory.texts.journaled import append, written
from tests.memory.texts.milvus_server import free_port, start_server


@pytest.mark.asyncio
async def test_a_remote_milvus_may_be_down_at_the_start_and_be_killed_later(
    tmp_path: Path, redis_server: RedisServer, embedder: BertEmbedder
) -> None:
    port = free_port()
    memory = await VectorMemory.open(
        f"http://127.0.0.1:{port}", embedder, redis_server.url, TextOptions(call_timeout_s=5)
    )
    started_s = time.monotonic()
    with pytest.raises(VectorStoreUnavailable):
        await memory.search(TENANT, SearchQuery(("handbook",), "gate", 5), 0.3)
    assert time.monotonic() - started_s < 1

    server = start_server(tmp_path / "server", port)
    try:
        await until_available(memory)
        stored = await remember(memory, "The north gate opens with the code QX7741B.", memory_id="gate")
        assert ids(await search(memory, "QX7741B")) == ["gate"]
        os.kill(server.pid, signal.SIGKILL)
        server.wait()
        with pytest.raises(VectorStoreUnavailable):
            await memory.search(TENANT, SearchQuery(("handbook",), "gate", 5), 0.3)
        server = start_server(tmp_path / "server", port)
        await until_available(memory)
        assert await memory.get(TENANT, "handbook", "gate") == stored
    finally:
        await memory.close()
        server.kill()
        server.wait()


async def until_available(memory: VectorMemory) -> None:
    for _ in range(75):
        try:
            await memory.list_namespaces(TENANT)
        except VectorStoreUnavailable:
            await asyncio.sleep(0.2)
        else:
            return
    raise AssertionError("the vector store did not come back")


async def test_two_gateways_share_a_milvus_server(
    tmp_path: Path, redis_server: RedisServer, embedder: BertEmbedder
) -> None:
    port = free_port()
    server = start_server(tmp_path / "server", port)
    url = f"http://127.0.0.1:{port}"
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(server.wait)
        stack.callback(server.kill)

        async def gateway() -> VectorMemory:
            memory = await VectorMemory.open(url, embedder, redis_server.url)
            stack.push_async_callback(memory.close)
            return memory

        first, second = await gateway(), await gateway()
        journal = Journal(redis_server.url, Quotas())
        stack.push_async_callback(journal.close)
        stored = await remember(first, "The north gate opens with the code QX7741B.", memory_id="gate")
        assert ids(await search(second, "QX7741B")) == ["gate"], "what one stores the other finds"
        assert await second.get(TENANT, "handbook", "gate") == stored
        assert await second.counts(TENANT) == {"handbook": 1}
        assert await remember(second, stored.text, memory_id="gate") == stored, "it is one memory"
        assert await second.forget(TENANT, "handbook", "gate")
        assert ids(await search(first, "QX7741B")) == []
        with pytest.raises(MemoryNotFound):
            await first.get(TENANT, "handbook", "gate")
        assert not await first.forget(TENANT, "handbook", "gate")

        # A gateway that is paused before it brings a write into Milvus, while another one forgets the memory.
        late = written(TENANT, stored, embedder.embed([stored.text], query=False)[0])
        # The other gateway's write has become durable meanwhile, and nothing remembers it.
        forgotten = (await journal.pending_of([late.key]))[late.key]
        assert not await journal.drop([forgotten], 0.0)
        await (await gateway()).settling.apply(TENANT, [replace(late, sequence=1)], time.monotonic() - 20.0)
        assert ids(await search(second, "QX7741B")) == [], "it does not come back"

        # A gateway that is killed after it has journaled a write.
        south = replace(stored, memory_id="south", text="The south gate opens with the code ZZ9000A.")
        write = written(TENANT, south, embedder.embed([south.text], query=False)[0])
        assert await append(journal, TENANT, write)
        assert await second.get(TENANT, "handbook", "south") == south, "it is acknowledged, and is there"
        assert ids(await search(await gateway(), "ZZ9000A")) == ["south"], "the next to start brings it in"
