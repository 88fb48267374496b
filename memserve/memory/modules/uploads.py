"""Uploads that can be resumed: the files of a module while they arrive.

Everything here blocks. Every upload has a folder: `<root>/<sha256 of the tenant>/<sha256 of the upload>`. Its
lock is on the folder itself, and ends with the process that holds it. A folder has only files whose names are
in the table of kinds, and the probes file.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from memserve.domain import ModuleKind
from memserve.domain.kinds import KINDS
from memserve.domain.names import is_sha256
from memserve.errors import InvalidModule, QuotaExceeded, UploadIncomplete
from memserve.memory.modules.blobs.places import newest_s
from memserve.memory.modules.kinds.table import PROBES_FILE
from memserve.memory.modules.probes import MAX_BYTES as PROBES_MAX_BYTES

MAX_UNFINISHED = 32
RETRY_AFTER_S = 2.0


@dataclass(frozen=True, slots=True)
class UploadFile:
    """A file that the header of an upload announces."""

    file_name: str
    size_bytes: int
    sha256: str
    """sha256 of the file's bytes, hex."""


class Uploads:
    """The unfinished uploads under `root`, of every tenant."""

    def __init__(self, root: Path, max_bytes: int, tenant_max_bytes: int) -> None:
        """max_bytes: the limit for one upload.

        tenant_max_bytes: the limit for all unfinished uploads of a tenant together. An upload with an open
        stream counts with its announced bytes, another upload with its received bytes.
        """
        self._root = root
        self._max_bytes = max_bytes
        self._tenant_max_bytes = tenant_max_bytes
        # Announced bytes of the uploads that this process has open.
        self._open: dict[Path, int] = {}

    def open(self, tenant: str, name: str, kind: ModuleKind, files: Sequence[UploadFile]) -> Upload:
        """Go on with the upload of these files, or begin it. The caller closes or discards it.

        A tenant has at most MAX_UNFINISHED unfinished uploads, of `tenant_max_bytes` together. Above that a
        new upload takes the place of the uploads that have been idle longest.

        Raises InvalidModule when the list of files breaks a rule. Raises QuotaExceeded when another stream
        has this upload open, and when the uploads with open streams leave no room for it.
        """
        folder = self._folder(tenant, name, kind, files)
        of_tenant = folder.parent
        of_tenant.mkdir(parents=True, exist_ok=True)
        # This lock keeps two streams of a tenant from counting its uploads at the same time.
        counting = os.open(of_tenant, os.O_RDONLY)
        try:
            fcntl.flock(counting, fcntl.LOCK_EX)
            announced_bytes = sum(file.size_bytes for file in files)
            lock = _lock(folder)
            if lock is None and folder.is_dir():
                raise QuotaExceeded("streams of this upload", 1, RETRY_AFTER_S)
            try:
                self._make_room(folder, announced_bytes)
            except QuotaExceeded:
                if lock is not None:
                    os.close(lock)
                raise
            if lock is None:
                folder.mkdir()
                lock = _lock(folder)
                assert lock is not None  # No other stream makes the folder while `counting` is locked.
            self._open[folder] = announced_bytes
        finally:
            os.close(counting)
        return Upload(folder, lock, files, lambda: self._open.pop(folder, None))

    def received(
        self, tenant: str, name: str, kind: ModuleKind, files: Sequence[UploadFile]
    ) -> tuple[int, ...]:
        """The received bytes of every file, in the order of the files. Zeros where there is no such upload.

        It changes nothing, and waits for no stream. Raises InvalidModule when the list of files breaks a
        rule.
        """
        folder = self._folder(tenant, name, kind, files)
        sizes = [_size(folder / file.file_name) for file in files]
        # A file with more than its announced bytes is removed when the upload goes on.
        return tuple(size if size <= file.size_bytes else 0 for file, size in zip(files, sizes, strict=True))

    def _make_room(self, wanted: Path, wanted_bytes: int) -> None:
        """Remove idle uploads of the tenant until the wanted upload fits, the longest idle first.

        Raises QuotaExceeded when the uploads with open streams are too many or too large.
        """
        others = [folder for folder in wanted.parent.iterdir() if folder != wanted]
        sizes = {folder: self._open.get(folder, _folder_bytes(folder)) for folder in others}
        surplus = len(others) + 1 - MAX_UNFINISHED
        surplus_bytes = sum(sizes.values()) + wanted_bytes - self._tenant_max_bytes
        for folder in sorted(others, key=lambda folder: newest_s(folder) or 0.0):
            if surplus <= 0 and surplus_bytes <= 0:
                return
            if _removed_if_idle(folder):
                surplus, surplus_bytes = surplus - 1, surplus_bytes - sizes[folder]
        if surplus > 0:
            raise QuotaExceeded("unfinished uploads", MAX_UNFINISHED, RETRY_AFTER_S)
        if surplus_bytes > 0:
            raise QuotaExceeded("bytes of unfinished uploads", self._tenant_max_bytes, RETRY_AFTER_S)

    def _folder(self, tenant: str, name: str, kind: ModuleKind, files: Sequence[UploadFile]) -> Path:
        _check_files(kind, files, self._max_bytes)
        listed = sorted((file.file_name, file.size_bytes, file.sha256) for file in files)
        of_tenant = self._root / hashlib.sha256(tenant.encode()).hexdigest()
        return of_tenant / hashlib.sha256(json.dumps([tenant, name, kind, listed]).encode()).hexdigest()


class Upload:
    """One upload, locked for this stream."""

    def __init__(
        self, folder: Path, lock: int, files: Sequence[UploadFile], on_close: Callable[[], object]
    ) -> None:
        """lock: the descriptor that holds the lock on the folder. on_close: called before it is closed."""
        self._folder = folder
        self._on_close = on_close
        self._lock: int | None = lock
        self._files = {file.file_name: file for file in files}
        for name, file in self._files.items():
            if _size(folder / name) > file.size_bytes:
                # The file was rewritten with other bytes, and then the publisher was cut off.
                (folder / name).unlink()

    def received(self) -> tuple[int, ...]:
        """The received bytes of every file, in the order of the files."""
        return tuple(_size(self._folder / name) for name in self._files)

    def append(self, file_name: str, offset: int, content: bytes) -> None:
        """Add bytes to a file. Bytes that it has already are passed over: `finish` looks at the content.

        offset: where the bytes belong in the file.
        Raises InvalidModule for a file that was not announced, and for more bytes than were announced. Raises
        UploadIncomplete when the file ends before `offset`, as when another gateway has its beginning. The
        publisher then sends it from its beginning.
        """
        file = self._files.get(file_name)
        if file is None:
            raise InvalidModule(
                "chunk.file_name", f"{file_name[:80]!r} is not one of the files in the header"
            )
        size = _size(self._folder / file_name)
        if not 0 <= offset <= size:
            raise UploadIncomplete(file_name, size, file.size_bytes)
        if offset + len(content) > file.size_bytes:
            raise InvalidModule(
                "chunk.content", f"{file_name} has {file.size_bytes} bytes in the header, and more have come"
            )
        with (self._folder / file_name).open("ab") as stream:
            stream.write(content[size - offset :])

    def finish(self) -> Path:
        """The folder with all files. It is there for as long as this upload is open.

        Raises UploadIncomplete when bytes are missing. Raises InvalidModule when a file has another sha256
        than the header says. The upload is then discarded.
        """
        for (name, file), size in zip(self._files.items(), self.received(), strict=True):
            if size != file.size_bytes:
                raise UploadIncomplete(name, size, file.size_bytes)
        for name, file in self._files.items():
            (self._folder / name).touch()  # An empty file has had no chunk.
            with (self._folder / name).open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
            if found != file.sha256:
                self.discard()
                raise InvalidModule(
                    name,
                    f"its sha256 is {found}, not {file.sha256} as in the header; send it again from "
                    "its beginning",
                )
        return self._folder

    def discard(self) -> None:
        """Remove the received files, and close the upload."""
        if self._lock is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self.close()

    def close(self) -> None:
        """Release the lock, so that another stream can go on with the upload. Safe to call twice."""
        if self._lock is not None:
            self._on_close()
            os.close(self._lock)
            self._lock = None


def sweep_uploads(root: Path, max_age_s: float, now_s: float) -> int:
    """Remove the uploads without an open stream that have not grown for `max_age_s`. Returns how many."""
    removed = 0
    for folder in root.glob("*/*"):
        idle_since_s = newest_s(folder)
        if idle_since_s is not None and now_s - idle_since_s >= max_age_s:
            removed += _removed_if_idle(folder)
    return removed


def _check_files(kind: ModuleKind, files: Sequence[UploadFile], max_bytes: int) -> None:
    row = KINDS[kind]
    known = (*row.files, *row.optional_files, PROBES_FILE)
    names = [file.file_name for file in files]
    for index, file in enumerate(files):
        field = f"header.files[{index}]"
        if file.file_name not in known:
            raise InvalidModule(
                f"{field}.file_name",
                f"{file.file_name[:80]!r} is not part of a {kind}; it has {', '.join(known)}",
            )
        if file.file_name in names[:index]:
            raise InvalidModule(f"{field}.file_name", f"{file.file_name} is there twice")
        if file.size_bytes < 0:
            raise InvalidModule(f"{field}.size_bytes", "must be 0 or more")
        if file.file_name == PROBES_FILE and file.size_bytes > PROBES_MAX_BYTES:
            raise InvalidModule(f"{field}.size_bytes", f"{PROBES_FILE} has at most {PROBES_MAX_BYTES} bytes")
        if not is_sha256(file.sha256):
            raise InvalidModule(f"{field}.sha256", "must be 64 hex digits, in lower case")
    for name in row.files:
        if name not in names:
            raise InvalidModule("header.files", f"{name} is missing; a {kind} has {', '.join(row.files)}")
    if sum(file.size_bytes for file in files) > max_bytes:
        raise InvalidModule(
            "header.files", f"a module has at most {max_bytes} bytes (setting max_module_bytes)"
        )


def _size(file: Path) -> int:
    """The file's bytes. 0 where there is no file."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _folder_bytes(folder: Path) -> int:
    return sum(_size(file) for file in folder.iterdir()) if folder.is_dir() else 0


def _removed_if_idle(folder: Path) -> bool:
    lock = _lock(folder)
    if lock is None:
        return False
    try:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)
    return True


def _lock(folder: Path) -> int | None:
    """Lock the folder. Returns the descriptor that holds the lock.

    None: another stream holds the lock, or the folder is gone.
    """
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), os.stat(folder)):
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    # Another stream holds the lock, or has removed the folder before this lock was taken.
    os.close(lock)
    return None
