"""Turns a backup into a data directory, while nothing runs."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from pathlib import Path

import redis

from memserve.embedded.part import Report
from memserve.embedded.redis_server import redis_executable
from memserve.errors import BackupDamaged, StartupError
from memserve.memory.backup_files import MANIFEST, REGISTRY, files_below, sync, verify

LOAD_TIMEOUT_S = 300.0


def restore(backup: Path, data: Path, report: Report) -> None:
    """Turn a backup into a data directory.

    data: missing or empty.
    Raises BackupDamaged, StartupError and OSError. The files that were written before the error are removed.
    """
    if data.exists() and (not data.is_dir() or any(data.iterdir())):
        raise StartupError(f"{data} is not empty; restore into a directory that is, or does not exist yet")
    if not (backup / MANIFEST).is_file():
        raise StartupError(f"{backup} is no backup: it has no {MANIFEST}")
    report("checking every file against the manifest")
    notes = verify(backup)
    existed = data.exists()
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        for file in files_below(backup):
            relative = file.relative_to(backup)
            if relative.as_posix() in (MANIFEST, REGISTRY):
                continue
            target = data / relative
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            shutil.copyfile(file, target)
            target.chmod(0o600)
            sync(target)
        report("loading the registry")
        _load_registry(backup / REGISTRY, data / "registry")
    except BaseException:
        for entry in data.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        if not existed:
            data.rmdir()
        raise
    for note in notes:
        report(note)
    report(f"restored; start it with `memserve up --data-dir {data}`")


def _load_registry(snapshot: Path, folder: Path) -> None:
    """Load a snapshot into a redis-server, and make the server write its append-only file.

    Redis reads a snapshot only while it has no append-only file.
    """
    folder.mkdir(mode=0o700)
    shutil.copyfile(snapshot, folder / "dump.rdb")
    socket = folder / "redis.sock"
    options = {"port": "0", "unixsocket": str(socket), "dir": str(folder), "save": "", "appendonly": "no"}
    arguments = [text for name, value in options.items() for text in (f"--{name}", value)]
    log = folder / "restore.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [redis_executable(), *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    deadline_s = time.monotonic() + LOAD_TIMEOUT_S
    try:
        with redis.Redis(unix_socket_path=str(socket)) as client:
            while True:
                if server.poll() is not None or time.monotonic() > deadline_s:
                    raise BackupDamaged("the registry's snapshot cannot be loaded")
                with contextlib.suppress(redis.ConnectionError, redis.BusyLoadingError):
                    client.ping()
                    break
                time.sleep(0.05)
            client.config_set("appendonly", "yes")
            while True:
                now = client.info("persistence")
                if not now["aof_rewrite_in_progress"] and not now["aof_rewrite_scheduled"]:
                    break
                if time.monotonic() > deadline_s:
                    raise BackupDamaged("the registry's file was not written in time")
                time.sleep(0.05)
            if now["aof_last_bgrewrite_status"] != "ok":
                raise StartupError("the registry's file could not be written; is the disk full?")
            with contextlib.suppress(redis.ConnectionError):
                client.shutdown(nosave=True)
        server.wait(30)
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()
    for file in (folder / "dump.rdb", socket, log):
        file.unlink(missing_ok=True)
    for file in (*files_below(folder), folder):
        sync(file)
