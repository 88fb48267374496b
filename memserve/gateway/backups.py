"""Backs up a data directory while memserve runs and accepts writes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import AsyncGenerator, AsyncIterator
from functools import partial
from pathlib import Path

import memserve
from memserve.config import Settings
from memserve.errors import BackupExists, BackupNotPossible
from memserve.memory.backup_files import MANIFEST, REGISTRY, check_name, seal, sync
from memserve.memory.texts.memory import VectorMemory
from memserve.memory.texts.milvus import is_local_uri
from memserve.registry.client import answering, registry_client
from memserve.turns import on_own_thread

SNAPSHOT_TIMEOUT_S = 600.0
SECRETS = ("salt_key", "keys.json")


class Backups:
    """One backup at a time, in `backups/<name>` of the data directory."""

    def __init__(self, settings: Settings, vector: VectorMemory) -> None:
        self._settings = settings
        self._vector = vector
        self._one = asyncio.Lock()

    async def make(self, name: str) -> AsyncGenerator[str, None]:
        """Yields a line of text for a person at every step. The backup is complete before the last line.

        A backup that fails or is cancelled leaves nothing.

        Raises InvalidField, BackupExists, BackupNotPossible and RegistryUnavailable, OSError for a full disk,
        and what the store of memories raises when it cannot flush.
        """
        check_name(name)
        settings = self._settings
        registry = settings.data / "registry"
        if settings.redis != f"unix://{registry / 'redis.sock'}":
            raise BackupNotPossible(
                "the registry is a Redis of yours; back it up by its own means, together with Milvus "
                "and the module store"
            )
        if self._one.locked():
            raise BackupNotPossible("another backup is under way")
        async with self._one:
            folder = settings.data / "backups" / name
            partial_folder = folder.with_name(f".{name}.partial")
            if folder.exists():
                raise BackupExists(name)
            shutil.rmtree(partial_folder, ignore_errors=True)
            partial_folder.mkdir(mode=0o700, parents=True)
            try:
                async for line in self._fill(partial_folder):
                    yield line
                await on_own_thread(partial(_rename, partial_folder, folder))
                yield f"backup {name} is complete"
            except BaseException:
                shutil.rmtree(partial_folder, ignore_errors=True)
                raise

    async def _fill(self, folder: Path) -> AsyncIterator[str]:
        settings = self._settings
        notes = []
        # Modules are linked twice, before the registry's snapshot and after it. The first pass has modules
        # that are deleted meanwhile. The second pass brings modules that are published meanwhile. So every
        # module that the snapshot names is in the backup.
        modules = settings.data / "modules"
        yield "modules"
        await on_own_thread(partial(_link_tree, modules, folder / "modules"))
        if settings.module_store_url:
            notes.append("the module store is elsewhere (module_store_url), and is not in this backup")
        if is_local_uri(settings.vector_uri):
            yield "memories: waiting until all that is acknowledged is flushed"
            # The journal is in the registry. Nothing leaves the journal meanwhile, so that the snapshot has
            # every write that Milvus's files lack.
            async with self._vector.settling.held_still(folder / "milvus.db"):
                yield "registry: a snapshot of one moment"
                await self._snapshot(settings.data / "registry" / "dump.rdb", folder / REGISTRY)
        else:
            notes.append(
                "memories are in a Milvus server, and are not in this backup: back that up too, "
                "before this or with nothing written between"
            )
            yield "registry: a snapshot of one moment"
            await self._snapshot(settings.data / "registry" / "dump.rdb", folder / REGISTRY)
        await on_own_thread(partial(_link_tree, modules, folder / "modules"))
        for name in SECRETS:
            if (settings.data / name).exists():
                shutil.copyfile(settings.data / name, folder / name)
                (folder / name).chmod(0o600)
        yield "the manifest: a digest of every file"
        files, size_bytes = await on_own_thread(
            partial(seal, folder, memserve.__version__, time.time(), notes)
        )
        for note in notes:
            yield note
        yield f"{files} files, {size_bytes >> 20} MiB"

    async def _snapshot(self, written: Path, target: Path) -> None:
        """Have the registry write its snapshot to `written`, and move it to `target`.

        An older snapshot is deleted first, so that it cannot be mistaken for the new one.

        Raises RegistryUnavailable and BackupNotPossible.
        """
        client = registry_client(self._settings.redis)
        try:
            await on_own_thread(partial(written.unlink, missing_ok=True))
            async with answering():
                await client.bgsave(schedule=True)
            deadline_s = time.monotonic() + SNAPSHOT_TIMEOUT_S
            while True:
                await asyncio.sleep(0.1)
                async with answering():
                    now = await client.info("persistence")
                failed = now["rdb_last_bgsave_status"] != "ok"
                if not now["rdb_bgsave_in_progress"] and (failed or await on_own_thread(written.exists)):
                    break
                if time.monotonic() > deadline_s:
                    raise BackupNotPossible(f"the registry wrote no snapshot within {SNAPSHOT_TIMEOUT_S:g} s")
            if failed:
                raise BackupNotPossible("the registry could not write its snapshot; is the disk full?")
            await on_own_thread(partial(written.rename, target))
        finally:
            await client.aclose()


def _link_tree(source: Path, target: Path) -> None:
    """Bring the files below `source` to `target`. A file that is in `target` already stays as it is.

    Files are hard links where the disk allows it, else copies.
    """
    for parent, _, names in os.walk(source):
        inside = target / Path(parent).relative_to(source)
        inside.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in names:
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                try:
                    os.link(Path(parent, name), inside / name)
                except OSError:
                    if not (inside / name).exists():
                        shutil.copyfile(Path(parent, name), inside / name)


def _rename(partial_folder: Path, folder: Path) -> None:
    assert (partial_folder / MANIFEST).exists()
    partial_folder.rename(folder)
    sync(folder.parent)
