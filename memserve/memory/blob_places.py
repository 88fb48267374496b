"""Where blobs are kept, and the place that is a directory."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

MANIFEST_FILE = "blob.json"
STAGING = ".staging"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

Source = Path | bytes


@dataclass(frozen=True, slots=True)
class FileFacts:
    """A file's size, and the sha256 of its bytes, hex."""

    size_bytes: int
    sha256: str


Manifest = Mapping[str, FileFacts]


class BlobPlace(Protocol):
    """Keeps folders of files under digests. Every digest that it is given is 64 hex digits."""

    def put(self, digest: str, sources: Mapping[str, Source]) -> int:
        """Keep the sources (file name to file or bytes) whole or not at all, durably. Returns their bytes."""
        ...

    def manifest(self, digest: str) -> Manifest | None:
        """What was put. None: nothing, or half of it."""
        ...

    def intact(self, digest: str) -> bool:
        """Whether every file is there in its size."""
        ...

    def fetch(self, digest: str, target: Path) -> Manifest | None:
        """Copy the files that are there into the folder `target`, unverified. None: there is no whole blob."""
        ...

    def delete(self, digest: str) -> bool:
        """From its first step on the blob is none. Returns whether there was anything."""
        ...

    def digests(self) -> Iterator[str]:
        """Of every blob, half-put ones too."""
        ...

    def changed_s(self, digest: str) -> float | None:
        """When it was put last, in seconds since the epoch. None: nothing is there."""
        ...


class Directory:
    """A directory: `<root>/<digest>/<file>`. A blob appears and disappears by a rename."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._staging = root / STAGING

    def folder(self, digest: str) -> Path:
        check_digest(digest)
        return self._root / digest

    def put(self, digest: str, sources: Mapping[str, Source]) -> int:
        check_sources(sources)
        kept = self._made_young(digest)
        if kept is not None:
            return total_bytes(kept)
        staged = self.stage()
        try:
            for name, source in sources.items():
                copy_source(source, staged / name)
            manifest = {name: file_facts(staged / name) for name in sources}
            self.adopt(digest, staged, manifest)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        return total_bytes(manifest)

    def stage(self) -> Path:
        """A new folder on the same file system."""
        staged = self._staging / uuid.uuid4().hex
        staged.mkdir(parents=True)
        return staged

    def adopt(self, digest: str, staged: Path, manifest: Manifest) -> None:
        """Make the staged folder the blob, durably. Where a sound one has come before, that one stays."""
        (staged / MANIFEST_FILE).write_bytes(encoded(manifest))
        for file in (*staged.iterdir(), staged):
            _sync(file)
        kept = self.folder(digest)
        if kept.exists() and not self.intact(digest):
            self.delete(digest)
        try:
            staged.rename(kept)
        except OSError:
            if not self.intact(digest):
                raise
        _sync(self._root)

    def manifest(self, digest: str) -> Manifest | None:
        try:
            return decoded((self.folder(digest) / MANIFEST_FILE).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None

    def intact(self, digest: str) -> bool:
        manifest = self.manifest(digest)
        if manifest is None:
            return False
        folder = self.folder(digest)
        return all((folder / name).is_file() and (folder / name).stat().st_size == facts.size_bytes for name, facts in manifest.items())

    def fetch(self, digest: str, target: Path) -> Manifest | None:
        manifest = self.manifest(digest)
        for name in manifest or ():
            try:
                shutil.copyfile(self.folder(digest) / name, target / name)
            except FileNotFoundError:
                continue
        return manifest

    def delete(self, digest: str) -> bool:
        self._staging.mkdir(parents=True, exist_ok=True)
        removed = self._staging / uuid.uuid4().hex
        try:
            self.folder(digest).rename(removed)
        except FileNotFoundError:
            return False
        _sync(self._root)
        shutil.rmtree(removed, ignore_errors=True)
        return True

    def digests(self) -> Iterator[str]:
        if self._root.is_dir():
            for entry in sorted(self._root.iterdir()):
                if _DIGEST.fullmatch(entry.name):
                    yield entry.name

    def changed_s(self, digest: str) -> float | None:
        return newest_s(self.folder(digest))

    def sweep_staging(self, min_age_s: float, now_s: float) -> int:
        """Remove what puts, fetches and deletions that were cut off have left. Returns how many."""
        removed = 0
        for entry in self._staging.iterdir() if self._staging.is_dir() else ():
            changed_s = newest_s(entry)
            if changed_s is not None and now_s - changed_s >= min_age_s:
                shutil.rmtree(entry, ignore_errors=True)
                removed += 1
        return removed

    def _made_young(self, digest: str) -> Manifest | None:
        """What is there whole, with the time of its last put set to now."""
        manifest = self.manifest(digest) if self.intact(digest) else None
        if manifest is not None:
            try:
                os.utime(self.folder(digest) / MANIFEST_FILE)
            except FileNotFoundError:
                return None
        return manifest


def check_digest(digest: str) -> None:
    """Raises ValueError: a digest becomes part of a path."""
    if not _DIGEST.fullmatch(digest):
        raise ValueError(f"not a digest: {digest[:80]!r}")


def check_sources(sources: Mapping[str, Source]) -> None:
    """Raises ValueError: names become parts of paths, and nothing but plain files is kept."""
    for name, source in sources.items():
        plain = isinstance(source, bytes) or (source.is_file() and not source.is_symlink())
        if not is_file_name(name) or not plain:
            raise ValueError(f"not a plain file of a blob: {name[:80]!r}")


def is_file_name(name: str) -> bool:
    return _FILE_NAME.fullmatch(name) is not None and name != MANIFEST_FILE


def copy_source(source: Source, target: Path) -> None:
    if isinstance(source, bytes):
        target.write_bytes(source)
    else:
        shutil.copyfile(source, target)


def total_bytes(manifest: Manifest) -> int:
    return sum(facts.size_bytes for facts in manifest.values())


def file_facts(file: Path) -> FileFacts:
    with file.open("rb") as stream:
        return FileFacts(os.fstat(stream.fileno()).st_size, hashlib.file_digest(stream, "sha256").hexdigest())


def encoded(manifest: Manifest) -> bytes:
    files = {name: {"size_bytes": facts.size_bytes, "sha256": facts.sha256} for name, facts in manifest.items()}
    return json.dumps({"files": files}, sort_keys=True).encode()


def decoded(content: bytes) -> Manifest | None:
    """None when it is not what `encoded` writes: cut short, or with names that are no plain file names."""
    try:
        entries = json.loads(content)["files"]
        files = {str(name): FileFacts(int(entry["size_bytes"]), str(entry["sha256"])) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    sound = all(is_file_name(name) and _DIGEST.fullmatch(facts.sha256) for name, facts in files.items())
    return files if sound and files else None


def newest_s(folder: Path) -> float | None:
    """When the folder or a file in it changed last, in seconds since the epoch. None: it is not there."""
    try:
        return max(entry.stat().st_mtime for entry in (folder, *folder.iterdir()))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
