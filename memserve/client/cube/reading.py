"""Reads cubes. Everything of a cube is checked before anything of it is used."""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Self

from memserve.client.cube.layout import (
    CHUNK_BYTES,
    FORMAT,
    LINE_MAX_BYTES,
    MANIFEST,
    MEMORIES,
    RECORD_MAX_BYTES,
    SIGNATURE,
    VERSION,
    is_entry_name,
    module_entry,
    version_entry,
)
from memserve.client.cube.lines import memory_lines
from memserve.client.cube.records import decoded, encoded, json_object, value_of
from memserve.client.cube.signing import File, Verifier, read_signature
from memserve.client.cube.values import Cube, CubeEntry, CubeManifest, CubeModule, CubeRefused
from memserve.client.cube.writing import parts_of, sha256_of
from memserve.client.cube.zip_layout import FILE, kept_digest, opened_zip
from memserve.client.uploads import PROBES_FILE
from memserve.domain import ModuleKind, ModuleVersion
from memserve.domain.kinds import KINDS
from memserve.domain.names import is_sha256
from memserve.errors import UsageError

Told = Callable[[int, int], None]


def read_cube(file: File, verify: File | None = None) -> Cube:
    """Read a cube to its end. Blocking; it needs no gateway.

    verify: a PEM file with the Ed25519 public key that must have signed it.
    Raises CubeRefused, and UsageError for a file or a key that cannot be read.
    """
    with CubeFile(file) as archive:
        return archive.checked(verify)


class CubeFile:
    """An open cube. What is read after `checked` comes from the same file, also if another takes its place.

    Blocking. Raises CubeRefused.
    """

    def __init__(self, file: File) -> None:
        """Raises UsageError too."""
        self._path = Path(file)
        try:
            self._stream: IO[bytes] = self._path.open("rb")
        except OSError as error:
            raise UsageError("file", f"{file} cannot be read: {error.strerror}") from None
        try:
            self._zip = opened_zip(self._stream)
        except OSError as error:
            self._stream.close()
            raise UsageError("file", f"{file} cannot be read: {error.strerror}") from None
        except BaseException:
            self._stream.close()
            raise
        self._entries: dict[str, CubeEntry] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._zip.close()
        self._stream.close()

    def checked(self, verify: File | None = None, told: Told = lambda done, total: None) -> Cube:
        """Read the whole file, and hold it against its digests and the key.

        told: called with how many bytes are read, and how many there are.
        """
        content = self._small(MANIFEST)
        manifest = read_manifest(content)
        names = [MANIFEST, *([SIGNATURE] if SIGNATURE in self._zip.namelist() else [])]
        self._check_names(manifest, names)
        signature = self._small(SIGNATURE) if len(names) > 1 else None
        if verify is not None:
            Verifier(verify).check(content, signature)
        signer = read_signature(signature)[0] if signature is not None else ""
        self._entries = {entry.name: entry for entry in manifest.entries}
        done, total = 0, sum(entry.size_bytes for entry in manifest.entries)
        for entry in manifest.entries:
            for part in self._parts(entry):
                done += len(part)
                told(done, total)
        end = self._stream.seek(0, io.SEEK_END) - 64
        if sha256_of(self._stream, end) != kept_digest(self._stream):
            raise CubeRefused(FILE, "is damaged outside its entries: its sha256 is not the one at its end")
        self._check_memories(manifest)
        modules, versions = self._modules(manifest)
        return Cube(self._path, end + 64, manifest, signer, verify is not None, modules, versions)

    def lines(self) -> Iterator[bytes]:
        """The lines of the memories, as they were exported."""
        entry = self._entries[MEMORIES]
        with io.BufferedReader(_Checked(self._parts(entry)), CHUNK_BYTES) as stream:
            while line := stream.readline(LINE_MAX_BYTES + 2):
                yield line.rstrip(b"\n")

    def extract(self, version: ModuleVersion, folder: Path) -> None:
        """Write the files of a version into an empty folder. Raises OSError too."""
        for name in self.file_names(version):
            entry = self._entries[version_entry(version.module, version.version, name)]
            with (folder / name).open("xb") as target:
                for part in self._parts(entry):
                    target.write(part)

    def file_names(self, version: ModuleVersion) -> list[str]:
        row = KINDS[version.kind]
        return [
            name
            for name in (*row.files, *row.optional_files, PROBES_FILE)
            if version_entry(version.module, version.version, name) in self._entries
        ]

    def _check_names(self, manifest: CubeManifest, own: list[str]) -> None:
        listed = [entry.name for entry in manifest.entries] + own
        held = self._zip.namelist()
        for name in listed:
            if name not in self._zip.NameToInfo:
                raise CubeRefused(name[:200], "is missing; cube.json names it")
        for name, wanted in zip(held, listed, strict=False):
            if name != wanted:
                raise CubeRefused(name, "is not named by cube.json in its place")
        if len(held) != len(listed):
            raise CubeRefused(held[-1], "is not named by cube.json")

    def _parts(self, entry: CubeEntry) -> Iterator[bytes]:
        """The bytes of an entry. Raises CubeRefused at the latest behind the last one."""
        info = self._zip.getinfo(entry.name)
        if info.file_size != entry.size_bytes:
            raise CubeRefused(
                entry.name, f"has {info.file_size} bytes, and cube.json says {entry.size_bytes}"
            )
        content, read_bytes = hashlib.sha256(), 0
        try:
            with self._zip.open(info) as stream:
                for part in parts_of(stream, entry.size_bytes):
                    content.update(part)
                    read_bytes += len(part)
                    yield part
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise CubeRefused(entry.name, f"is damaged: {error}") from None
        if read_bytes != entry.size_bytes or content.hexdigest() != entry.sha256:
            raise CubeRefused(entry.name, "is damaged: its sha256 is not the one in cube.json")

    def _small(self, name: str) -> bytes:
        """A whole entry of bounded size, which cube.json does not name. Its CRC is checked."""
        info = self._zip.getinfo(name)
        try:
            with self._zip.open(info) as stream:
                return stream.read()
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise CubeRefused(name, f"is damaged: {error}") from None

    def _record(self, name: str) -> bytes:
        entry = self._entries.get(name)
        if entry is None:
            raise CubeRefused(name, "is missing; cube.json speaks of it")
        if entry.size_bytes > RECORD_MAX_BYTES:
            raise CubeRefused(name, f"has more than {RECORD_MAX_BYTES} bytes")
        return b"".join(self._parts(entry))

    def _check_memories(self, manifest: CubeManifest) -> None:
        if MEMORIES not in self._entries:
            if manifest.namespaces:
                raise CubeRefused(MEMORIES, "is missing; cube.json speaks of it")
            return
        counts = dict.fromkeys(manifest.namespaces, 0)
        for memory in memory_lines(self.lines()):
            counts[memory.namespace] = counts.get(memory.namespace, 0) + 1
        if counts != manifest.namespaces:
            raise CubeRefused(MEMORIES, "has not the memories that cube.json speaks of")

    def _modules(self, manifest: CubeManifest) -> tuple[tuple[CubeModule, ...], tuple[ModuleVersion, ...]]:
        modules, versions = [], []
        expected = {MEMORIES} & self._entries.keys()
        for name, numbers in manifest.modules.items():
            module = decoded(CubeModule, module_entry(name), self._record(module_entry(name)))
            expected.add(module_entry(name))
            if module.name != name or module.kind not in KINDS:
                raise CubeRefused(
                    module_entry(name), "is of another module, or of a kind that is unknown here"
                )
            _check_aliases(module)
            modules.append(module)
            for number in numbers:
                version = self._version(module, number)
                expected |= {version_entry(name, number, file) for file in self.file_names(version)}
                expected.add(version_entry(name, number))
                versions.append(version)
        for name in self._entries:
            if name not in expected:
                raise CubeRefused(name, "belongs to nothing in the cube")
        return tuple(modules), tuple(versions)

    def _version(self, module: CubeModule, number: int) -> ModuleVersion:
        name = version_entry(module.name, number)
        version = decoded(ModuleVersion, name, self._record(name))
        if (version.module, version.version, version.kind) != (module.name, number, module.kind):
            raise CubeRefused(name, f"is of {version.reference}")
        for digest in (version.digest, *version.parents):
            if not is_sha256(digest):
                raise CubeRefused(name, f"names {digest[:80]!r}, which is no sha256")
        held = self.file_names(version)
        for file in KINDS[ModuleKind(version.kind)].files:
            if file not in held:
                raise CubeRefused(version_entry(module.name, number, file), "is missing")
        probes = self._entries.get(version_entry(module.name, number, PROBES_FILE))
        if version.probes_digest != (probes.sha256 if probes else ""):
            raise CubeRefused(version_entry(module.name, number, PROBES_FILE), f"is not what {VERSION} names")
        return version


class _Checked(io.RawIOBase):
    """A file of the parts of an iterator."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            part = next(self._parts, None)
            if part is None:
                return 0
            self._rest = part
        taken = self._rest[: len(buffer)]
        self._rest = self._rest[len(taken) :]
        buffer[: len(taken)] = taken
        return len(taken)


def _check_aliases(module: CubeModule) -> None:
    """Raises CubeRefused for shares of traffic that are none."""
    for each in module.aliases:
        weights = [target.weight for target in each.alias.targets]
        if weights and (min(weights) < 0 or not 0 < sum(weights) < math.inf):
            name = each.alias.name[:80]
            raise CubeRefused(module_entry(module.name), f"its alias {name!r} has weights that share nothing")


def read_manifest(content: bytes) -> CubeManifest:
    """Raises CubeRefused."""
    fields = json_object(MANIFEST, content)
    made_as = fields.get("memserve_cube")
    if type(made_as) is not int or made_as < 1:
        raise CubeRefused(MANIFEST, "is of no memserve cube")
    if made_as > FORMAT:
        raise CubeRefused(
            MANIFEST, f"is of format {made_as}, and this memserve reads up to {FORMAT}; update memserve"
        )
    manifest = value_of(CubeManifest, MANIFEST, fields.get("manifest"))
    if fields.get("sha256") != hashlib.sha256(encoded(manifest)).hexdigest() or len(fields) != 3:
        raise CubeRefused(MANIFEST, "is damaged: its sha256 is not its own")
    names = [entry.name for entry in manifest.entries]
    for name in names:
        if not is_entry_name(name):
            raise CubeRefused(MANIFEST, f"names {name[:80]!r}, which is no entry of a cube")
    if len(set(names)) != len(names):
        raise CubeRefused(MANIFEST, "names an entry twice")
    return manifest
