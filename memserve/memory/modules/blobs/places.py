"""Where blobs are kept, and the place that is a directory."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from memserve.domain.names import is_plain_file_name, is_sha256
from memserve.errors import BlobStoreUnavailable, InvalidModule

MANIFEST_FILE = "blob.json"
STAGING = ".staging"
COPY_BYTES = 1 << 20

Source = Path | bytes


@dataclass(frozen=True, slots=True)
class FileFacts:
    """A file's size, and the sha256 of its bytes, hex."""

    size_bytes: int
    sha256: str


Manifest = Mapping[str, FileFacts]


class BlobPlace(Protocol):
    """Keeps folders of files under digests. Every digest that it is given is 64 hex digits.

    Everything raises BlobStoreUnavailable when the place does not answer, is full, or does not let us in.
    """

    def put(self, digest: str, sources: Mapping[str, Source], expected: Mapping[str, str]) -> int:
        """Keep the sources (file name to file or bytes) whole or not at all, durably. What is there and sound
        stays as it is.

        expected: file name to the sha256 that a source which is a file must have, of those that it names.
        Returns the bytes kept. Raises InvalidModule for a source with another sha256.
        """
        ...

    def manifest(self, digest: str) -> Manifest | None:
        """What was put. None: nothing, or half of it."""
        ...

    def intact(self, digest: str) -> bool:
        """Whether every file is there in its size. Reads no file, and does not see bytes that have
        changed.
        """
        ...

    def fetch(self, digest: str, target: Path) -> Manifest | None:
        """Copy the files that are there into the folder `target`, unverified. None: there is no whole
        blob.
        """
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


@contextmanager
def answering() -> Iterator[None]:
    """A disk that is full, broken or closed to us is a fact about the module store."""
    try:
        yield
    except OSError as error:
        # Without the paths that are in the error's text.
        raise BlobStoreUnavailable(reason(error)) from error


def reason(error: Exception) -> str:
    """Of the error, what the system says; for others, their class. The messages of libraries may have a URL
    or a password in them.
    """
    number = error.errno if isinstance(error, OSError) else None
    return os.strerror(number) if isinstance(number, int) and number > 0 else type(error).__name__


class Directory:
    """A directory: `<root>/<digest>/<file>`. A blob appears and disappears by a rename."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._staging = root / STAGING

    def folder(self, digest: str) -> Path:
        check_digest(digest)
        return self._root / digest

    @answering()
    def put(self, digest: str, sources: Mapping[str, Source], expected: Mapping[str, str]) -> int:
        check_sources(sources)
        kept = self._made_young(digest)
        if kept is not None:
            return total_bytes(kept)
        staged = self.stage()
        try:
            # Of what was read, not of what lies there now: a disk that has lost bytes is found out by whoever
            # reads them.
            manifest = {
                name: _copied_file(name, source, staged / name, expected) for name, source in sources.items()
            }
            self.adopt(digest, staged, manifest)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        return total_bytes(manifest)

    @answering()
    def stage(self) -> Path:
        """A new folder on the same file system."""
        staged = self._staging / uuid.uuid4().hex
        staged.mkdir(parents=True)
        return staged

    @answering()
    def adopt(self, digest: str, staged: Path, manifest: Manifest) -> None:
        """Make the staged folder the blob, durably. Where a sound one has come before, that one stays."""
        (staged / MANIFEST_FILE).write_bytes(encoded(manifest))
        for file in (*staged.iterdir(), staged):
            _sync(file)
        kept = self.folder(digest)
        if kept.exists() and self.sound(digest) is None:
            self.delete(digest)
        try:
            staged.rename(kept)
        except OSError:
            if not self.intact(digest):
                raise
        _sync(self._root)

    @answering()
    def manifest(self, digest: str) -> Manifest | None:
        try:
            return decoded((self.folder(digest) / MANIFEST_FILE).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None

    @answering()
    def intact(self, digest: str) -> bool:
        manifest = self.manifest(digest)
        if manifest is None:
            return False
        try:
            return all(
                (self.folder(digest) / name).stat().st_size == facts.size_bytes
                for name, facts in manifest.items()
            )
        except (FileNotFoundError, NotADirectoryError):
            return False

    def sound(self, digest: str) -> Manifest | None:
        """What is there with every file in its sha256. Reads every file. None: nothing, or a file that is
        damaged.
        """
        manifest = self.manifest(digest)
        if manifest is None or not all(
            has_facts(self.folder(digest) / name, facts) for name, facts in manifest.items()
        ):
            return None
        return manifest

    @answering()
    def fetch(self, digest: str, target: Path) -> Manifest | None:
        manifest = self.manifest(digest)
        for name in manifest or ():
            try:
                shutil.copyfile(self.folder(digest) / name, target / name)
            except FileNotFoundError:
                continue
        return manifest

    @answering()
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
        with answering():
            names = sorted(entry.name for entry in self._root.iterdir()) if self._root.is_dir() else []
        yield from filter(is_sha256, names)

    @answering()
    def changed_s(self, digest: str) -> float | None:
        return newest_s(self.folder(digest))

    @answering()
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
        """What is there and sound, with the time of its last put set to now."""
        manifest = self.sound(digest)
        if manifest is not None:
            try:
                os.utime(self.folder(digest) / MANIFEST_FILE)
            except FileNotFoundError:
                return None
        return manifest


def check_digest(digest: str) -> None:
    """Raises ValueError: a digest becomes part of a path."""
    if not is_sha256(digest):
        raise ValueError(f"not a digest: {digest[:80]!r}")


def check_sources(sources: Mapping[str, Source]) -> None:
    """Raises ValueError: names become parts of paths, and nothing but plain files is kept."""
    for name, source in sources.items():
        plain = isinstance(source, bytes) or (source.is_file() and not source.is_symlink())
        if not is_file_name(name) or not plain:
            raise ValueError(f"not a plain file of a blob: {name[:80]!r}")


def is_file_name(name: str) -> bool:
    return is_plain_file_name(name) and name != MANIFEST_FILE


def opened(source: Source) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def copied(source: BinaryIO, target: BinaryIO | None = None) -> FileFacts:
    """Read the source to its end, into the target where there is one. Returns the facts of what was read."""
    size_bytes, content = 0, hashlib.sha256()
    while part := source.read(COPY_BYTES):
        size_bytes += len(part)
        content.update(part)
        if target is not None:
            target.write(part)
    return FileFacts(size_bytes, content.hexdigest())


def check_expected(name: str, source: Source, facts: FileFacts, expected: Mapping[str, str]) -> None:
    """Raises InvalidModule for a file that is not the one that was checked."""
    if not isinstance(source, bytes) and facts.sha256 != expected.get(name, facts.sha256):
        raise InvalidModule(
            name,
            f"its sha256 is {facts.sha256}, not {expected[name]} any more; send it again from its beginning",
        )


def total_bytes(manifest: Manifest) -> int:
    return sum(facts.size_bytes for facts in manifest.values())


@answering()
def has_facts(file: Path, facts: FileFacts) -> bool:
    """Reads the file. Raises BlobStoreUnavailable when it is there and cannot be read."""
    try:
        with file.open("rb") as stream:
            return os.fstat(stream.fileno()).st_size == facts.size_bytes and copied(stream) == facts
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False


def encoded(manifest: Manifest) -> bytes:
    files = {
        name: {"size_bytes": facts.size_bytes, "sha256": facts.sha256} for name, facts in manifest.items()
    }
    return json.dumps({"files": files}, sort_keys=True).encode()


def decoded(content: bytes) -> Manifest | None:
    """None when it is not what `encoded` writes: cut short, or with names that are no plain file names."""
    try:
        entries = json.loads(content)["files"]
        files = {
            str(name): FileFacts(int(entry["size_bytes"]), str(entry["sha256"]))
            for name, entry in entries.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    sound = all(is_file_name(name) and is_sha256(facts.sha256) for name, facts in files.items())
    return files if sound and files else None


def newest_s(folder: Path) -> float | None:
    """When the folder or a file in it changed last, in seconds since the epoch. None: it is not there."""
    try:
        return max(entry.stat().st_mtime for entry in (folder, *folder.iterdir()))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _copied_file(name: str, source: Source, target: Path, expected: Mapping[str, str]) -> FileFacts:
    with opened(source) as read, target.open("wb") as written:
        facts = copied(read, written)
    check_expected(name, source, facts, expected)
    return facts


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
