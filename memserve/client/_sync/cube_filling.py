# Generated from ../_async/cube_filling.py by `make client`; do not edit.
"""What goes into a cube: exports of memories, and versions with their files."""

from __future__ import annotations

import contextlib

from memserve.client._sync import _io
from memserve.client._sync.memory_sets import MemorySetCalls
from memserve.client._sync.modules import ModuleCalls
from memserve.client.cube.layout import MEMORIES, module_entry, version_entry
from memserve.client.cube.lines import Lines
from memserve.client.cube.records import encoded
from memserve.client.cube.values import CubeAlias, CubeModule, CubeProgress, LeftOut
from memserve.client.cube.writing import CubeWriter, module_record
from memserve.client.downloads import VersionContent
from memserve.domain import Module, ModuleVersion

LINES_AT_ONCE = 256


class CubeFilling:
    """Fills one cube."""

    def __init__(
        self,
        memories: MemorySetCalls,
        modules: ModuleCalls,
        writer: CubeWriter,
        progress: CubeProgress,
    ) -> None:
        self._memories = memories
        self._modules = modules
        self._writer = writer
        self._progress = progress
        self.namespaces: dict[str, int] = {}
        """Memories of each namespace that are in the cube."""
        self.numbers: dict[str, tuple[int, ...]] = {}
        """Module to its versions that are in the cube."""
        self.left_out: list[LeftOut] = []

    def add_memories(self, namespaces: list[str]) -> None:
        if not namespaces:
            return
        _io.on_thread(self._writer.begin, MEMORIES)
        reader, waiting = Lines(), list[bytes]()
        with contextlib.closing(self._memories.export_memories(namespaces)) as lines:
            for line in lines:
                content = line.encode()
                reader.take(content)
                waiting.append(content + b"\n")
                if len(waiting) == LINES_AT_ONCE:
                    _io.on_thread(self._writer.write, *waiting)
                    waiting.clear()
                    self._progress("exporting memories", reader.memories, 0)
        _io.on_thread(self._writer.write, *waiting)
        self._progress("exporting memories", reader.memories, reader.memories)
        self.namespaces = reader.end()

    def add_module(self, module: Module, base_digest: str) -> None:
        """base_digest: of the base model that is served. Versions for another one are left out."""
        aliases = [
            CubeAlias(alias, tuple(self._modules.history(module.name, alias=alias.name)))
            for alias in module.aliases
        ]
        record = module_record(CubeModule(module.name, module.kind, tuple(aliases)))
        _io.on_thread(self._writer.add, module_entry(module.name), record)
        numbers = []
        for version in reversed(self._modules.versions(module.name)):
            if base_digest and version.base_digest not in ("", base_digest):
                why = f"it was made for the base model {version.base_digest[:12]}, which is not served"
                self.left_out.append(LeftOut(version.reference, version.digest, why))
                continue
            self._add_version(version)
            numbers.append(version.version)
        self.numbers[module.name] = tuple(numbers)

    def _add_version(self, version: ModuleVersion) -> None:
        done, doing = 0, f"exporting {version.reference}"
        sizes: dict[str, int] = {}
        name = ""
        with contextlib.closing(self._modules.read(version.reference)) as parts:
            for part in parts:
                if isinstance(part, VersionContent):
                    sizes = {file.file_name: file.size_bytes for file in part.files}
                    entry = version_entry(version.module, version.version)
                    _io.on_thread(self._writer.add, entry, encoded(version))
                    continue
                if part.file_name != name:
                    name = part.file_name
                    entry = version_entry(version.module, version.version, name)
                    _io.on_thread(self._writer.begin, entry, sizes[name])
                _io.on_thread(self._writer.write, part.content)
                done += len(part.content)
                self._progress(doing, done, sum(sizes.values()))
