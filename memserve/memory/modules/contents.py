"""The files of a version on their way out of the gateway: in chunks, and each digest is checked."""

from __future__ import annotations

import hashlib
import io
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from memserve.domain import ModuleVersion
from memserve.domain.kinds import KINDS
from memserve.errors import BlobDamaged
from memserve.memory.modules.kinds.table import PROBES_FILE
from memserve.memory.modules.memory import ParametricMemory
from memserve.memory.modules.uploads import UploadFile

CHUNK_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class FilePart:
    """Consecutive bytes of a file."""

    file_name: str
    offset: int
    content: bytes


@dataclass(frozen=True, slots=True)
class _Entry:
    file: UploadFile
    source: Path | bytes


class _Reader:
    """Reads a file from its beginning, and compares what it read. Blocking."""

    def __init__(self, digest: str, entry: _Entry) -> None:
        source = entry.source
        self._digest, self._file = digest, entry.file
        self._stream: BinaryIO = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
        self._offset, self._sha256 = 0, hashlib.sha256()

    def next(self) -> FilePart | None:
        """None: the file has ended as it should. Raises BlobDamaged."""
        part = FilePart(self._file.file_name, self._offset, self._stream.read(CHUNK_BYTES))
        self._offset += len(part.content)
        self._sha256.update(part.content)
        is_whole = self._offset == self._file.size_bytes and self._sha256.hexdigest() == self._file.sha256
        if self._offset > self._file.size_bytes or not (part.content or is_whole):
            raise BlobDamaged(self._digest, f"{self._file.file_name} has another size or sha256")
        return part if part.content else None

    def close(self) -> None:
        self._stream.close()


class VersionFiles:
    """All files of a version in the order of its kind, the probes last."""

    def __init__(self, memory: ParametricMemory, tenant: str, digest: str, entries: list[_Entry]) -> None:
        self._memory = memory
        self._tenant = tenant
        self._digest = digest
        self._entries = entries

    @property
    def files(self) -> tuple[UploadFile, ...]:
        return tuple(entry.file for entry in self._entries)

    async def parts(self) -> AsyncGenerator[FilePart, None]:
        """Every file to its end, one after the other. A part is read when it is asked for.

        Raises BlobDamaged for a file that is not what was kept, after its parts, and BlobStoreUnavailable.
        """
        work = self._memory.files
        for entry in self._entries:
            reader = await work.run(
                self._tenant, partial(_Reader, self._digest, entry), undo=lambda opened: opened.close()
            )
            try:
                while (part := await work.run(self._tenant, reader.next)) is not None:
                    yield part
            finally:
                reader.close()


async def files_of(memory: ParametricMemory, tenant: str, version: ModuleVersion) -> VersionFiles:
    """The files of a version. What the module store has elsewhere is fetched here first.

    Raises ModuleNotFound, BlobDamaged and BlobStoreUnavailable.
    """
    entries = await memory.files.run(tenant, partial(_entries, memory, version))
    return VersionFiles(memory, tenant, version.digest, entries)


def _entries(memory: ParametricMemory, version: ModuleVersion) -> list[_Entry]:
    folder = memory.blobs.local(version.digest)
    modules, _ = memory.blobs.parts
    facts = modules.copies.manifest(version.digest)
    if facts is None:
        raise BlobDamaged(version.digest, "its list of files is missing or unreadable")
    row = KINDS[version.kind]
    entries = [
        _Entry(UploadFile(name, facts[name].size_bytes, facts[name].sha256), folder / name)
        for name in (*row.files, *row.optional_files)
        if name in facts
    ]
    if version.probes_digest:
        probes = memory.blobs.probes(version.probes_digest)
        entries.append(_Entry(UploadFile(PROBES_FILE, len(probes), version.probes_digest), probes))
    return entries
