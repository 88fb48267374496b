"""Milvus Lite's process: what it answers, what becomes of its errors and warnings, and what its end does."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import psutil
import pytest

from memserve.domain import NewMemory, SearchQuery
from memserve.errors import VectorStoreDamaged, VectorStoreHeld
from memserve.memory.texts import milvus_lite_wire as wire
from memserve.memory.texts.due import FlushPolicy
from memserve.memory.texts.embedding import BertEmbedder
from memserve.memory.texts.index import OWN_WORK, VectorIndex
from memserve.memory.texts.memory import TextOptions, VectorMemory
from memserve.memory.texts.milvus import MilvusAccess, MilvusFailed, MilvusMemories, Vectors, milvus_failures
from memserve.memory.texts.milvus_lite import MilvusLiteStore
from tests.kv.redis_server import RedisServer
from tests.memory.texts.handbook import TENANT, ids, remember, search
from tests.memory.texts.store_records import DIM, memory_of, record_of

WITHIN_S = 10.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MilvusLiteStore]:
    with opened(str(tmp_path / "memories.db")) as lite:
        yield lite


@contextlib.contextmanager
def opened(path: str) -> Iterator[MilvusLiteStore]:
    store = MilvusLiteStore(path)
    try:
        yield store
    finally:
        store.close(clean=False)


def until(holds: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + WITHIN_S
    while not holds():
        assert time.monotonic() < give_up_s
        time.sleep(0.02)


async def soon(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not holds():
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    "error",
    [
        VectorStoreHeld(),
        VectorStoreDamaged("JSONDecodeError"),
        OSError(errno.ENOSPC, "No space left on device", "/srv/memories.db/\udcff"),
        PermissionError(errno.EACCES, "Permission denied"),
    ],
)
def test_errors_keep_their_types_on_their_way(error: Exception) -> None:
    line = wire.line_of({"id": 1, "failure": wire.failure_of(error)})
    message = wire.read(BytesIO(line))
    assert message is not None
    told = wire.error_from(message["failure"], MilvusFailed)
    assert (type(told), str(told)) == (type(error), str(error))
    assert getattr(told, "errno", None) == getattr(error, "errno", None)


def test_other_errors_are_told_in_one_short_line() -> None:
    told = wire.error_from(wire.failure_of(KeyError("a\n" * 5000)), MilvusFailed)
    assert isinstance(told, MilvusFailed)
    assert str(told).startswith("KeyError: ") and len(str(told)) <= wire.TEXT_MAX


@pytest.mark.parametrize("line", [b"no JSON\n", b"[1]\n", b"\xff\n"])
def test_what_is_no_message_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"Expecting value|no object|can.t decode"):
        wire.read(BytesIO(line))


def test_half_a_line_is_the_end() -> None:
    assert wire.read(BytesIO(b'{"id": 1')) is None


def test_a_path_that_cannot_be_made_raises_the_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        MilvusLiteStore(str(tmp_path / "file" / "memories.db"))


def test_warnings_come_into_the_log_of_this_process(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = str(tmp_path / "memories.db")
    memories = MilvusMemories(path, MilvusAccess(), Vectors(DIM), timeout_s=10)
    memories.put([record_of(TENANT, memory_of("one"))], timeout_s=10)
    memories.flush(timeout_s=10)
    memories.close(clean=True)
    (file,) = Path(path).glob("collections/*/partitions/*/*/*.parquet")
    file.write_bytes(b"no parquet")
    with caplog.at_level(logging.WARNING):
        MilvusLiteStore(path).close(clean=False)
    assert f"{file.name} cannot be read and is moved" in caplog.text


def test_a_killed_process_fails_every_call_at_once_and_leaves_no_zombie_and_no_socket(
    store: MilvusLiteStore, tmp_path: Path
) -> None:
    ended = threading.Event()
    store.when_ended(ended.set)
    assert not store.has_ended
    os.kill(store.process_id, signal.SIGKILL)
    with pytest.raises(MilvusFailed, match=r"has ended|SIGKILL"):
        store.sync()
    assert ended.wait(WITHIN_S) and store.has_ended
    assert not psutil.pid_exists(store.process_id)
    until(lambda: not list(tmp_path.glob(".milvus-*")))
    store.probe()
    store.close(clean=False)
    with opened(str(tmp_path / "memories.db")) as again:
        again.sync()


def test_a_call_that_waits_for_an_answer_ends_with_the_process(store: MilvusLiteStore) -> None:
    os.kill(store.process_id, signal.SIGSTOP)
    threading.Timer(0.2, os.kill, (store.process_id, signal.SIGKILL)).start()
    with pytest.raises(MilvusFailed, match="SIGKILL"):
        store.sync()


def test_closing_ends_the_process_and_lets_the_folder_go(store: MilvusLiteStore, tmp_path: Path) -> None:
    store.close(clean=True)
    assert not psutil.pid_exists(store.process_id)
    with opened(str(tmp_path / "memories.db")) as again:
        assert again.process_id != store.process_id


def test_the_process_ends_with_its_parent_also_by_kill_9(tmp_path: Path) -> None:
    program = (
        "import sys, time; from memserve.memory.texts.milvus_lite import MilvusLiteStore\n"
        "print(MilvusLiteStore(sys.argv[1]).process_id, flush=True); time.sleep(60)"
    )
    path = str(tmp_path / "memories.db")
    parent = subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert psutil.Process(child).nice() > psutil.Process().nice()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    MilvusLiteStore(path).close(clean=False)
    until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)


def test_a_call_of_milvus_client_ends_with_the_process_and_not_with_its_time(tmp_path: Path) -> None:
    memories = MilvusMemories(str(tmp_path / "memories.db"), MilvusAccess(), Vectors(DIM), timeout_s=10)
    assert memories.process_id is not None
    os.kill(memories.process_id, signal.SIGKILL)
    began_s = time.monotonic()
    with pytest.raises(MilvusFailed), milvus_failures():
        memories.flush(timeout_s=60)
    assert time.monotonic() - began_s < WITHIN_S
    memories.close()


@pytest.mark.asyncio
async def test_a_process_that_cannot_be_started_is_not_started_at_every_call(tmp_path: Path) -> None:
    path = tmp_path / "memories.db"
    holder = MilvusLiteStore(str(path))
    index = VectorIndex(str(path), Vectors(DIM), None, is_searched=False, call_timeout_s=10)
    with pytest.raises(VectorStoreHeld):
        await index.read(OWN_WORK, lambda store: store.ping(timeout_s=10))
    with pytest.raises(MilvusFailed, match="started again in a moment"):
        await index.read(OWN_WORK, lambda store: store.ping(timeout_s=10))
    holder.close(clean=False)
    await asyncio.sleep(0.6)
    await index.read(OWN_WORK, lambda store: store.ping(timeout_s=10))
    await index.close(clean=False)


@pytest.mark.asyncio
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "with writes on their way"])
async def test_after_a_kill_of_milvus_lite_searches_and_writes_go_on_and_nothing_is_lost(
    tmp_path: Path, redis_server: RedisServer, embedder: BertEmbedder, busy: bool
) -> None:
    uri = str(tmp_path / "memories.db")
    options = TextOptions(flush=FlushPolicy(quiet_s=3600.0 if busy else 0.1))
    memory = await VectorMemory.open(uri, embedder, redis_server.url, options)
    await remember(memory, "Locker 1 has the key K0001.", memory_id="m1")
    if not busy:
        await soon(lambda: memory.settling.is_settled)
    before = await memory._index.read(OWN_WORK, lambda store: store.process_id)
    assert before is not None
    os.kill(before, signal.SIGKILL)
    await soon(lambda: memory._index.has_ended)
    assert ids(await search(memory, "K0001", limit=1)) == ["m1"]
    await remember(memory, "Locker 2 has the key K0002.", memory_id="m2")
    items = [NewMemory("handbook", f"Locker {n} has the key K{n:04d}.", memory_id=f"m{n}") for n in (3, 4)]
    assert [outcome.error async for outcome in memory.remember_many(TENANT, items)] == [None, None]
    found = await memory.search(TENANT, SearchQuery(("handbook",), "K0002", 1), 10)
    assert ids(found.hits) == ["m2"] and not found.cut
    await memory.settling.settle_now()
    assert memory.settling.is_settled
    after = await memory._index.read(OWN_WORK, lambda store: store.process_id)
    assert after not in (None, before)
    await memory.close()
    shutil.rmtree(tmp_path / "memories.index")
    memory = await VectorMemory.open(uri, embedder, redis_server.url)
    assert await memory.counts(TENANT) == {"handbook": 4}
    await memory.close()


@pytest.mark.asyncio
async def test_an_idle_gateway_starts_milvus_lite_again(
    tmp_path: Path, redis_server: RedisServer, embedder: BertEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memserve.memory.texts.settling.LOOK_S", 0.05)
    memory = await VectorMemory.open(str(tmp_path / "memories.db"), embedder, redis_server.url)
    before = await memory._index.read(OWN_WORK, lambda store: store.process_id)
    assert before is not None
    os.kill(before, signal.SIGKILL)
    await soon(lambda: not memory.settling.is_trusted)
    await soon(lambda: memory.settling.is_trusted)
    assert await memory._index.read(OWN_WORK, lambda store: store.process_id) not in (None, before)
    await memory.close()
