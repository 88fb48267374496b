"""The places where blobs are kept: what every place does, and the place that is a directory."""

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
    """What a file of a blob must be."""

    size_bytes: int
    sha256: str
    """sha256 of the file's bytes, hex."""


Manifest = Mapping[str, FileFacts]
"""The list of a blob's files: file name to facts."""


class BlobPlace(Protocol):
    """Keeps folders of files under digests. Every digest has 64 hex digits.

    Every method raises BlobStoreUnavailable when the place does not answer, is full, or refuses access.
    """

    def put(self, digest: str, sources: Mapping[str, Source], expected: Mapping[str, str]) -> int:
        """Keep all sources durably, or none of them. A sound blob that is already there keeps its files.

        sources: file name to file or bytes.
        expected: file name to the sha256 that the source must have if it is a file. Files without an entry
        may have any.
        Returns the kept bytes. Raises InvalidModule for a source with another sha256.
        """
        ...

    def manifest(self, digest: str) -> Manifest | None:
        """The blob's list of files. None: there is no readable list, and so no blob."""
        ...

    def intact(self, digest: str) -> bool:
        """Whether every file is there with its size. Reads no file, so changed bytes go unnoticed."""
        ...

    def fetch(self, digest: str, target: Path) -> Manifest | None:
        """Copy the blob's files into the folder `target` without checking them. A missing file is left out.

        Returns the blob's list of files. None: there is no list, and nothing was copied.
        """
        ...

    def delete(self, digest: str) -> bool:
        """Remove the blob. The first step makes it no blob. Returns whether there was anything to remove."""
        ...

    def digests(self) -> Iterator[str]:
        """The digests of all blobs, including blobs that are only partly there."""
        ...

    def changed_s(self, digest: str) -> float | None:
        """The time of the last put, in seconds since the epoch. None: nothing is there."""
        ...


@contextmanager
def answering() -> Iterator[None]:
    """Raises BlobStoreUnavailable for an OSError: a disk that is full, broken or not accessible."""
    try:
        yield
    except OSError as error:
        # The error's own text has paths in it.
        raise BlobStoreUnavailable(reason(error)) from error


def reason(error: Exception) -> str:
    """The system's text for an error with an error number, else the error's class.

    The messages of libraries may contain a URL or a password.
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
            # The facts are those of the bytes that were read from the sources. If the disk loses bytes, the
            # next reader then notices.
            manifest = {
                name: _copied_file(name, source, staged / name, expected) for name, source in sources.items()
            }
            self.adopt(digest, staged, manifest)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        return total_bytes(manifest)

    @answering()
    def stage(self) -> Path:
        """A new folder on the file system of the blobs, so that it can be renamed to a blob."""
        staged = self._staging / uuid.uuid4().hex
        staged.mkdir(parents=True)
        return staged

    @answering()
    def adopt(self, digest: str, staged: Path, manifest: Manifest) -> None:
        """Make the staged folder the blob, durably. A sound blob that is already there stays."""
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
        """The list of files of a blob whose every file has its sha256. Reads every file.

        None: there is no blob, or a file is missing or damaged.
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
        """Remove the folders that interrupted puts, fetches and deletions have left. Returns how many."""
        removed = 0
        for entry in self._staging.iterdir() if self._staging.is_dir() else ():
            changed_s = newest_s(entry)
            if changed_s is not None and now_s - changed_s >= min_age_s:
                shutil.rmtree(entry, ignore_errors=True)
                removed += 1
        return removed

    def _made_young(self, digest: str) -> Manifest | None:
        """Set the time of the last put of a sound blob to now.

        Returns the blob's list of files. None: there is no sound blob.
        """
        manifest = self.sound(digest)
        if manifest is not None:
            try:
                os.utime(self.folder(digest) / MANIFEST_FILE)
            except FileNotFoundError:
                return None
        return manifest


def check_digest(digest: str) -> None:
    """Raises ValueError for a text that is not a digest. A digest becomes a part of a path."""
    if not is_sha256(digest):
        raise ValueError(f"not a digest: {digest[:80]!r}")


def check_sources(sources: Mapping[str, Source]) -> None:
    """Raises ValueError for a name that cannot be a file's, and for a source that is no plain file."""
    for name, source in sources.items():
        plain = isinstance(source, bytes) or (source.is_file() and not source.is_symlink())
        if not is_file_name(name) or not plain:
            raise ValueError(f"not a plain file of a blob: {name[:80]!r}")


def is_file_name(name: str) -> bool:
    return is_plain_file_name(name) and name != MANIFEST_FILE


def opened(source: Source) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def copied(source: BinaryIO, target: BinaryIO | None = None) -> FileFacts:
    """Read the source to its end, and write it to the target if there is one.

    Returns the facts of the bytes that were read.
    """
    size_bytes, content = 0, hashlib.sha256()
    while part := source.read(COPY_BYTES):
        size_bytes += len(part)
        content.update(part)
        if target is not None:
            target.write(part)
    return FileFacts(size_bytes, content.hexdigest())


def check_expected(name: str, source: Source, facts: FileFacts, expected: Mapping[str, str]) -> None:
    """Raises InvalidModule for a file with another sha256 than `expected` has. Bytes are not compared."""
    if not isinstance(source, bytes) and facts.sha256 != expected.get(name, facts.sha256):
        raise InvalidModule(
            name,
            f"its sha256 is {facts.sha256}, not {expected[name]} any more; send it again from its beginning",
        )


def total_bytes(manifest: Manifest) -> int:
    return sum(facts.size_bytes for facts in manifest.values())


@answering()
def has_facts(file: Path, facts: FileFacts) -> bool:
    """Whether the file is there with this size and sha256. Reads the file.

    Raises BlobStoreUnavailable when the file is there and cannot be read.
    """
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
    """Read what `encoded` writes. None: it is cut short, or has a name that is no plain file name."""
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
    """The last change of the folder or a file in it, in seconds since the epoch. None: no such folder."""
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
