"""A Milvus behind a URI: Milvus Lite's own server in another process."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from memserve.errors import (
    VectorStoreUnavailable,
)
from memserve.memory.texts.embedding import BertEmbedder
from memserve.memory.texts.memory import VectorMemory
from tests.kv.redis_server import RedisServer
from tests.memory.texts.handbook import TENANT, ids, remember, search


def start_server(data_dir: Path, port: int) -> subprocess.Popen[bytes]:
    command = [
        str(Path(sys.executable).with_name("milvus-lite")),
        "server",
        "--data-dir",
        str(data_dir),
        "--host",
        "127.0.0.1",
    ]
    server = subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline_s = time.monotonic() + 20
    while time.monotonic() < deadline_s:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return server
        time.sleep(0.05)
    raise AssertionError("the Milvus server did not start")


@pytest.mark.asyncio
async def test_a_remote_milvus_may_be_down_at_the_start_and_be_killed_later(
    tmp_path: Path, redis_server: RedisServer, embedder: BertEmbedder
) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    memory = await VectorMemory.open(f"http://127.0.0.1:{port}", embedder, redis_server.url, call_timeout_s=5)
    started_s = time.monotonic()
    with pytest.raises(VectorStoreUnavailable):
        await memory.search(TENANT, ["handbook"], "gate", 5, timeout_s=0.3)
    assert time.monotonic() - started_s < 1

    server = start_server(tmp_path / "server", port)
    try:
        await until_available(memory)
        stored = await remember(memory, "The north gate opens with the code QX7741B.", memory_id="gate")
        assert ids(await search(memory, "QX7741B")) == ["gate"]
        os.kill(server.pid, signal.SIGKILL)
        server.wait()
        with pytest.raises(VectorStoreUnavailable):
            await memory.search(TENANT, ["handbook"], "gate", 5, timeout_s=0.3)
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
