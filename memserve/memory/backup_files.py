"""The format of a backup: a folder with the parts of a data directory, and a manifest.

The manifest has the size and the digest of every file. `memserve/gateway/backups.py` makes a backup while
memserve runs. `memserve/embedded/restore.py` turns a backup into a data directory.

  manifest.json           is written last: a folder without it is no backup
  registry.rdb            the registry at one moment
  milvus.db/              Milvus Lite's files from before that moment; the registry's journal has the writes
                          in between
  modules/                the content of the module store
  salt_key, keys.json     the secrets
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from memserve.domain.names import is_name
from memserve.errors import BackupDamaged, InvalidField
from memserve.private_files import write_private

MANIFEST = "manifest.json"
REGISTRY = "registry.rdb"
FORMAT = 1


def check_name(name: str) -> None:
    """Check the name of a backup. Raises InvalidField."""
    if not is_name(name):
        raise InvalidField(
            "name", "must be 1 to 64 of a-z, 0-9, '.', '_' and '-', and begin with a letter or a digit"
        )


def seal(folder: Path, version: str, created_s: float, notes: list[str]) -> tuple[int, int]:
    """Write the manifest of all files in the folder, and sync everything to disk.

    notes: lines for a person, which `verify` returns.
    Returns the number of files and their bytes. Raises OSError.
    """
    listed: dict[str, dict[str, int | str]] = {}
    size_bytes = 0
    for file in files_below(folder):
        listed[file.relative_to(folder).as_posix()] = {
            "bytes": file.stat().st_size,
            "sha256": digest_of(file),
        }
        size_bytes += file.stat().st_size
        sync(file)
    for inner in sorted(
        {
            parent
            for file in files_below(folder)
            for parent in file.parents
            if parent == folder or folder in parent.parents
        }
    ):
        sync(inner)
    document = {"format": FORMAT, "version": version, "created_s": created_s, "notes": notes, "files": listed}
    write_private(folder / MANIFEST, json.dumps(document, indent=1).encode())
    return len(listed), size_bytes


def verify(folder: Path) -> list[str]:
    """Compare every file with the manifest. Returns the manifest's notes.

    Raises BackupDamaged for a missing, an additional or a changed file, and for an unreadable manifest.
    """
    try:
        document = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise BackupDamaged(f"it has format {document['format']}, and this memserve reads {FORMAT}")
        listed = {
            str(name): (int(entry["bytes"]), str(entry["sha256"]))
            for name, entry in document["files"].items()
        }
        notes = [str(note) for note in document["notes"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackupDamaged(f"its manifest cannot be read: {type(error).__name__}") from None
    there = {file.relative_to(folder).as_posix() for file in files_below(folder)} - {MANIFEST}
    for name in sorted(listed.keys() | there):
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise BackupDamaged(f"its manifest names {name!r}")
        if name not in there or name not in listed:
            raise BackupDamaged(f"{name} is {'missing' if name in listed else 'not in its manifest'}")
        if (folder / name).is_symlink() or (
            (folder / name).stat().st_size,
            digest_of(folder / name),
        ) != listed[name]:
            raise BackupDamaged(f"{name} is not what was backed up")
    return notes


def files_below(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            yield Path(parent, name)


def digest_of(file: Path) -> str:
    """sha256, hex."""
    with file.open("rb") as stream:
        return str(hashlib.file_digest(stream, "sha256").hexdigest())


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
