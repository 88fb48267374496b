"""A backup of a data directory while it is written to, and what comes back of it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from memserve.config import load_settings
from memserve.domain import NewMemory
from memserve.embedded.restore import restore
from memserve.errors import (
    BackupDamaged,
    BackupExists,
    BackupNotPossible,
    InvalidField,
    MemoryNotFound,
    StartupError,
)
from memserve.gateway.backups import Backups
from memserve.memory.backup_files import MANIFEST
from memserve.memory.texts.due import FlushPolicy
from memserve.memory.texts.embedding import BertEmbedder
from memserve.memory.texts.memory import TextOptions, VectorMemory
from tests.kv.redis_server import RedisServer

TENANT = "acme"


class DataDirectory:
    """A registry and memories in a data directory, as `memserve up` has them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "registry").mkdir(parents=True, exist_ok=True)
        self.registry = RedisServer(folder / "registry")
        self.registry.start_durably()

    async def open(self, embedder: BertEmbedder) -> VectorMemory:
        return await VectorMemory.open(
            str(self.folder / "milvus.db"),
            embedder,
            self.registry.url,
            TextOptions(flush=FlushPolicy(rows=32, quiet_s=0.05)),
        )

    def backups(self, memory: VectorMemory) -> Backups:
        return Backups(load_settings({}, data_dir=str(self.folder), redis_url=self.registry.url), memory)


async def remember(memory: VectorMemory, number: int) -> None:
    await memory.remember(TENANT, NewMemory("notes", f"text {number}", source="s", memory_id=f"m{number}"))


async def back_up(backups: Backups, name: str) -> list[str]:
    return [line async for line in backups.make(name)]


@pytest.fixture(scope="module")
def embedder() -> BertEmbedder:
    return BertEmbedder()


@pytest.mark.asyncio
async def test_a_backup_that_is_made_while_writes_go_on_restores_one_moment(
    tmp_path: Path, embedder: BertEmbedder
) -> None:
    source = DataDirectory(tmp_path / "source")
    (source.folder / "modules" / "abc").mkdir(parents=True)
    (source.folder / "modules" / "abc" / "weights").write_bytes(b"w" * 1000)
    (source.folder / "salt_key").write_bytes(b"k" * 64)
    memory = await source.open(embedder)
    for number in range(100):
        await remember(memory, number)
    for number in range(0, 100, 10):
        assert await memory.forget(TENANT, "notes", f"m{number}")
    writing = True
    written = [100]

    async def write() -> None:
        while writing:
            await remember(memory, written[0])
            written[0] += 1

    writers = asyncio.create_task(write())
    lines = await back_up(source.backups(memory), "first")
    writing = False
    await writers
    assert "complete" in lines[-1]
    assert written[0] > 100
    with pytest.raises(BackupExists):
        await back_up(source.backups(memory), "first")
    await memory.close()
    source.registry.stop()

    lines: list[str] = []
    restore(source.folder / "backups" / "first", tmp_path / "target", lines.append)
    assert (tmp_path / "target" / "modules" / "abc" / "weights").read_bytes() == b"w" * 1000
    assert (tmp_path / "target" / "salt_key").read_bytes() == b"k" * 64
    assert (tmp_path / "target" / "salt_key").stat().st_mode & 0o777 == 0o600
    target = DataDirectory(tmp_path / "target")
    memory = await target.open(embedder)
    counts = await memory.counts(TENANT)
    present = 0
    for number in range(written[0]):
        try:
            assert (await memory.get(TENANT, "notes", f"m{number}")).text == f"text {number}"
            present += 1
            assert number >= 100 or number % 10 != 0
        except MemoryNotFound:
            # One moment: what was forgotten before, and what was remembered after.
            assert number >= 100 or number % 10 == 0
    assert present >= 90
    assert counts == {"notes": present}
    assert memory.lost(TENANT) == 0
    await remember(memory, 10_000)
    await memory.close()
    target.registry.start_durably()
    memory = await target.open(embedder)
    assert await memory.counts(TENANT) == {"notes": present + 1}
    await memory.close()
    target.registry.stop()


@pytest.mark.asyncio
async def test_what_is_no_backup_is_not_restored(tmp_path: Path, embedder: BertEmbedder) -> None:
    source = DataDirectory(tmp_path / "source")
    memory = await source.open(embedder)
    await remember(memory, 1)
    await back_up(source.backups(memory), "b")
    await memory.close()
    source.registry.stop()
    backup, target = source.folder / "backups" / "b", tmp_path / "target"

    def refused() -> str:
        with pytest.raises((BackupDamaged, StartupError)) as refusal:
            restore(backup, target, lambda line: None)
        assert not target.exists() or any(target.iterdir())
        return str(refusal.value)

    registry = backup / "registry.rdb"
    content = registry.read_bytes()
    registry.write_bytes(content[:-1])
    assert "registry.rdb is not what was backed up" in refused()
    registry.unlink()
    assert "registry.rdb is missing" in refused()
    registry.write_bytes(content)
    (backup / "more").write_text("", encoding="utf-8")
    assert "more is not in its manifest" in refused()
    (backup / "more").unlink()
    manifest = (backup / MANIFEST).read_text(encoding="utf-8")
    document = json.loads(manifest)
    document["files"]["../escape"] = {"bytes": 0, "sha256": ""}
    (backup / MANIFEST).write_text(json.dumps(document), encoding="utf-8")
    assert "names" in refused()
    (backup / MANIFEST).write_text(manifest[:50], encoding="utf-8")
    assert "manifest cannot be read" in refused()
    (backup / MANIFEST).write_text(manifest, encoding="utf-8")
    target.mkdir()
    (target / "something").write_text("mine", encoding="utf-8")
    assert "not empty" in refused()
    assert (target / "something").read_text(encoding="utf-8") == "mine"


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "A", "x" * 65, "a\n"])
async def test_no_name_of_a_backup_is_a_path(
    tmp_path: Path, embedder: BertEmbedder, redis_server: RedisServer, name: str
) -> None:
    memory = await VectorMemory.open(str(tmp_path / "milvus.db"), embedder, redis_server.url)
    backups = Backups(load_settings({}, data_dir=str(tmp_path), redis_url=redis_server.url), memory)
    with pytest.raises(InvalidField):
        await back_up(backups, name)
    with pytest.raises(BackupNotPossible, match="a Redis of yours"):
        await back_up(backups, "fine")
    await memory.close()
