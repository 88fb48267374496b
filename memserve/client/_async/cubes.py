"""MemCubes over the client's calls: `AsyncClient.cubes`. No file of a cube reaches a gateway as such."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path

from memserve.client._async import _io
from memserve.client._async.connection import Connection
from memserve.client._async.cube_emptying import AsyncCubeEmptying, Wishes
from memserve.client._async.cube_filling import AsyncCubeFilling
from memserve.client._async.memory_sets import AsyncMemorySetCalls
from memserve.client._async.modules import AsyncModuleCalls
from memserve.client.arguments import strings
from memserve.client.cube.planning import check_base, check_kinds, notes_of
from memserve.client.cube.reading import CubeFile, read_cube
from memserve.client.cube.signing import Signer
from memserve.client.cube.values import (
    AliasOutcome,
    Cube,
    CubeImport,
    CubeManifest,
    CubeProgress,
    VersionOutcome,
    silent_cube,
)
from memserve.client.cube.writing import CubeWriter
from memserve.client.values import Status
from memserve.client.wire.status import status_of
from memserve.domain import Module
from memserve.pb.v1 import status_pb2

File = str | PathLike[str]


class AsyncCubeCalls:
    """Namespaces and modules, taken out into one file and brought in again.

    Every method raises CubeRefused for a cube that is damaged, foreign, or does not fit; nothing was written
    then. It raises UsageError for a file or a key that cannot be read.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._memories = AsyncMemorySetCalls(connection)
        self._modules = AsyncModuleCalls(connection)

    async def read(self, file: File, *, verify: File | None = None) -> Cube:
        """Read a cube to its end and check it. No gateway is asked.

        verify: a PEM file with the Ed25519 public key that it must be signed with.
        """
        return await _io.on_thread(read_cube, file, verify)

    async def export(
        self,
        file: File,
        *,
        namespaces: str | Sequence[str] = (),
        modules: str | Sequence[str] = (),
        sign: File | None = None,
        progress: CubeProgress = silent_cube,
    ) -> Cube:
        """Write namespaces and modules into one file, which only its owner can read. The file is there, whole
        and checked, or what was there before stays.

        namespaces, modules: neither for all that the tenant has.
        sign: a PEM file with the Ed25519 private key that signs it.
        Raises OSError too.
        """
        names = strings("namespaces", namespaces), strings("modules", modules)
        signer = None if sign is None else await _io.on_thread(Signer, sign)
        status = await self._status()
        wanted = await self._wanted(*names)
        writer = await _io.on_thread(CubeWriter, Path(file))
        try:
            filling = AsyncCubeFilling(self._memories, self._modules, writer, progress)
            await filling.add_memories(wanted[0])
            for module in wanted[1]:
                await filling.add_module(module, status.model_digest)
            await _io.on_thread(writer.end)
            manifest = CubeManifest(
                created_s=time.time(),
                memserve=status.version,
                model=status.model,
                model_digest=status.model_digest,
                embedder=status.embedder,
                namespaces=filling.namespaces,
                modules=filling.numbers,
                left_out=tuple(filling.left_out),
                entries=tuple(writer.entries),
            )
            await _io.on_thread(writer.close, manifest, signer)
            cube = await _io.on_thread(read_cube, writer.aside)
            await _io.on_thread(writer.put)
        finally:
            await _io.on_thread(writer.discard)
        return replace(cube, path=Path(file))

    async def import_(
        self,
        file: File,
        *,
        verify: File | None = None,
        dry_run: bool = False,
        aliases: bool = False,
        without_modules: bool = False,
        progress: CubeProgress = silent_cube,
    ) -> CubeImport:
        """Bring in a cube, after all of it is checked. Done again it changes nothing, and after an
        interruption it goes on.

        Memories keep ids, versions, histories and times. A memory that is here with another history stays.
        Versions of modules become candidates, unless this content is here already.

        verify: a PEM file with the Ed25519 public key that it must be signed with.
        dry_run: only say what would change.
        aliases: point aliases where they pointed, each version through the gate first.
        without_modules: bring in the memories alone, as for another base model.
        """
        archive = await _io.on_thread(CubeFile, file)
        try:
            told = _io.reported_here(lambda done, total: progress("checking the cube", done, total))
            cube = await _io.on_thread(archive.checked, verify, told)
            status = await self._status()
            here: dict[str, Module] = {}
            if cube.modules and not without_modules:
                check_base(cube, status)
                here = {module.name: module for module in await self._modules.all()}
                check_kinds(cube, here)
            emptying = AsyncCubeEmptying(self._memories, self._modules, archive, cube, progress)
            memories = await emptying.memories(dry_run)
            versions: list[VersionOutcome] = []
            moved: list[AliasOutcome] = []
            for module in () if without_modules else cube.modules:
                outcomes, set_aliases = await emptying.module(
                    module, here.get(module.name), Wishes(dry_run, aliases)
                )
                versions += outcomes
                moved += set_aliases
        finally:
            await _io.on_thread(archive.close)
        notes = notes_of(cube, status, not without_modules)
        return CubeImport(dry_run, memories, tuple(versions), tuple(moved), notes)

    async def _status(self) -> Status:
        stub, request = self._connection.stubs.status, status_pb2.GetStatusRequest(workers_only=True)
        return status_of(await self._connection.call(stub.GetStatus, request))

    async def _wanted(self, namespaces: list[str], modules: list[str]) -> tuple[list[str], list[Module]]:
        if not namespaces and not modules:
            usage = await self._memories.memory_usage()
            return [used.namespace for used in usage.namespaces], await self._modules.all()
        names = sorted(dict.fromkeys(modules))
        return namespaces, [await self._modules.get(name) for name in names]
