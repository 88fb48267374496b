"""Writes a cube beside its place, reads it again, and puts it there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
import zipfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import IO

from memserve.client.cube.layout import (
    CHUNK_BYTES,
    END,
    END_BYTES,
    ENTRIES_MAX,
    FORMAT,
    MANIFEST,
    RECORD_MAX_BYTES,
    SIGNATURE,
    is_compressed,
)
from memserve.client.cube.records import encoded
from memserve.client.cube.signing import Signer
from memserve.client.cube.values import CubeEntry, CubeManifest, CubeModule, CubeRefused

# The same content makes the same bytes.
_TIME = (1980, 1, 1, 0, 0, 0)


class CubeWriter:
    """A new cube. Blocking. Every method raises OSError."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self.aside = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
        descriptor = os.open(self.aside, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self._stream = os.fdopen(descriptor, "w+b")
        self._zip = zipfile.ZipFile(self._stream, "w")
        self._entry: _Entry | None = None
        self.entries: list[CubeEntry] = []

    def begin(self, name: str, size_bytes: int | None = None) -> None:
        """The next entry, whose bytes come with `write`. size_bytes: None where it is not known yet."""
        self.end()
        if len(self.entries) >= ENTRIES_MAX:
            raise CubeRefused(name, f"is one too many: a cube has at most {ENTRIES_MAX} entries")
        self._entry = _Entry(self._zip, name, size_bytes)

    def write(self, *parts: bytes) -> None:
        assert self._entry is not None
        for part in parts:
            self._entry.write(part)

    def add(self, name: str, content: bytes) -> None:
        """A whole entry."""
        self.begin(name, len(content))
        self.write(content)

    def close(self, manifest: CubeManifest, signer: Signer | None) -> None:
        """End the file with the manifest. It is then whole, and still beside its place."""
        self.end()
        content = manifest_bytes(manifest)
        self._plain(MANIFEST, content)
        if signer is not None:
            self._plain(SIGNATURE, signer.signature(content))
        self._zip.comment = END + b"0" * 64
        self._zip.close()
        length = self._stream.seek(0, os.SEEK_END) - END_BYTES
        digest = sha256_of(self._stream, length + len(END))
        self._stream.seek(length + len(END))
        self._stream.write(digest.encode())
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()

    def put(self) -> None:
        """Put the closed file in its place."""
        self.aside.rename(self._target)
        folder = os.open(self._target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def discard(self) -> None:
        """Remove what is beside the place. After `put` it does nothing."""
        # zipfile ends its file when it is forgotten, so it is ended here, before the file is closed.
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            if self._entry is not None:
                self._entry.ended()
            self._zip.close()
        self._stream.close()
        self.aside.unlink(missing_ok=True)

    def end(self) -> None:
        """End the entry that is open."""
        if self._entry is not None:
            self.entries.append(self._entry.ended())
            self._entry = None

    def _plain(self, name: str, content: bytes) -> None:
        self.begin(name, len(content))
        self.write(content)
        self.end()


class _Entry:
    def __init__(self, target: zipfile.ZipFile, name: str, size_bytes: int | None) -> None:
        info = zipfile.ZipInfo(name, _TIME)
        info.compress_type = zipfile.ZIP_DEFLATED if is_compressed(name) else zipfile.ZIP_STORED
        info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o600) << 16
        info.file_size = size_bytes or 0
        self._name = name
        self._stream: IO[bytes] = target.open(info, "w", force_zip64=size_bytes is None)
        self._size_bytes, self._sha256 = 0, hashlib.sha256()

    def write(self, part: bytes) -> None:
        self._size_bytes += len(part)
        self._sha256.update(part)
        self._stream.write(part)

    def ended(self) -> CubeEntry:
        self._stream.close()
        return CubeEntry(self._name, self._size_bytes, self._sha256.hexdigest())


def module_record(module: CubeModule) -> bytes:
    """`module.json`. Histories of aliases have no bound: those that are too long lose their older half."""
    content = encoded(module)
    while len(content) > RECORD_MAX_BYTES and any(alias.history for alias in module.aliases):
        aliases = (
            replace(alias, history=alias.history[(len(alias.history) + 1) // 2 :]) for alias in module.aliases
        )
        module = replace(module, aliases=tuple(aliases))
        content = encoded(module)
    return content


def manifest_bytes(manifest: CubeManifest) -> bytes:
    """`cube.json`: the format, a digest over all of it, and the manifest."""
    digest = hashlib.sha256(encoded(manifest)).hexdigest()
    return encoded({"memserve_cube": FORMAT, "manifest": manifest, "sha256": digest})


def sha256_of(stream: IO[bytes], length: int) -> str:
    """Of the first bytes of a file, hex."""
    stream.seek(0)
    content = hashlib.sha256()
    for part in parts_of(stream, length):
        content.update(part)
    return content.hexdigest()


def parts_of(stream: IO[bytes], length: int) -> Iterable[bytes]:
    while length > 0 and (part := stream.read(min(CHUNK_BYTES, length))):
        length -= len(part)
        yield part
