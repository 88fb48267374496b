"""The folder of the local index: who holds it, whether it can be used, and where a damaged one goes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import sqlite3
import time
from pathlib import Path

from memserve.errors import VectorStoreHeld
from memserve.memory.texts.local.schema import (
    ROWS_FILE,
    SCHEMA_VERSION,
    IndexNeedsRebuild,
    RebuildReason,
    connect,
    create,
    is_damage,
)

DAMAGED_KEPT = 1
"""Damaged indexes that are kept for a look. Older ones are deleted: they hold texts."""
_LOCK = "LOCK"


def hold(folder: Path) -> int:
    """Lock the folder, which is made. Returns the descriptor, which is closed to let go.

    Raises VectorStoreHeld when another process holds it, OSError.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise VectorStoreHeld from None
        raise
    return lock


def prepare(folder: Path, dim: int, embedder: str, *, check: bool) -> None:
    """Check a held folder, and create the tables in an empty one.

    check: read every page, as after an unclean end.
    Raises IndexNeedsRebuild. A damaged index has been moved aside then.
    """
    if not (folder / ROWS_FILE).exists():
        create(folder, dim, _meta(dim, embedder, unfinished=False))
        return
    try:
        with contextlib.closing(connect(folder, read_only=False)) as connection:
            meta = dict(connection.execute("SELECT name, value FROM meta").fetchall())
            damage = "ok"
            if check or meta.get("clean") != "1":
                (damage,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        if is_damage(error) or "no such table" in str(error):
            raise _moved_aside(folder, str(error)) from error
        raise OSError(errno.EIO, f"the local index: {error}") from error
    if damage != "ok":
        raise _moved_aside(folder, str(damage))
    wrong = {
        RebuildReason.SCHEMA: ("schema", str(SCHEMA_VERSION)),
        RebuildReason.DIM: ("dim", str(dim)),
        RebuildReason.EMBEDDER: ("embedder", embedder),
    }
    for reason, (name, expected) in wrong.items():
        if meta.get(name) != expected:
            raise IndexNeedsRebuild(reason, f"its {name} is {meta.get(name)!r}, and {expected!r} is needed")
    if meta.get("unfinished"):
        raise IndexNeedsRebuild(RebuildReason.UNFINISHED, "a rebuild was begun and not finished")


def begin_anew(folder: Path, dim: int, embedder: str, *, resume: bool) -> None:
    """Empty a held folder for a rebuild. resume: keep what an unfinished rebuild of the same kind has."""
    if resume:
        try:
            prepare(folder, dim, embedder, check=False)
        except IndexNeedsRebuild as error:
            if error.reason is RebuildReason.UNFINISHED:
                return
    for entry in folder.iterdir():
        if entry.name == _LOCK or entry.name.startswith("damaged-"):
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    create(folder, dim, _meta(dim, embedder, unfinished=True))


def disk_bytes(folder: Path) -> int:
    """Of all files, without those of damaged indexes."""
    total = 0
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith("damaged-")]
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += (Path(parent) / name).stat().st_size
    return total


def sync_rows(folder: Path) -> None:
    """Bring what is committed in SQLite to disk. Raises OSError."""
    for name in (f"{ROWS_FILE}-wal", ROWS_FILE, "."):
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(folder / name, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _meta(dim: int, embedder: str, *, unfinished: bool) -> dict[str, str]:
    meta = {"schema": str(SCHEMA_VERSION), "dim": str(dim), "embedder": embedder, "clean": "1"}
    return {**meta, "unfinished": "1"} if unfinished else meta


def _moved_aside(folder: Path, why: str) -> IndexNeedsRebuild:
    for old in sorted(folder.glob("damaged-*"))[: -DAMAGED_KEPT + 1 or None]:
        shutil.rmtree(old, ignore_errors=True)
    aside = folder / f"damaged-{time.time_ns()}"
    aside.mkdir(mode=0o700)
    for entry in folder.iterdir():
        if entry.name != _LOCK and not entry.name.startswith("damaged-"):
            entry.rename(aside / entry.name)
    return IndexNeedsRebuild(RebuildReason.DAMAGED, f"{why}; its files are in {aside}")
