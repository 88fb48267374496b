"""The modules of one engine.

They are loaded ahead or on demand. They stay while they are used or pinned. Others leave when room is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from memserve.domain import ModuleKind, ModulePlace
from memserve.domain.names import is_sha256
from memserve.errors import InvalidModule
from memserve.worker.modules.copies import LocalCopies
from memserve.worker.modules.room import Holder, ModuleRefused, Places, Room

# How many modules are fetched at the same time.
FETCHES = 4


class Modules:
    """What an engine holds. A module's place is what the engine said when it was last asked."""

    def __init__(
        self, copies: LocalCopies, holders: Mapping[ModuleKind, Holder], absent: Mapping[ModuleKind, str]
    ) -> None:
        """absent: the kinds of modules that the engine cannot hold, and why."""
        self.copies = copies
        self.absent = absent
        self._rooms = {kind: Room(holder) for kind, holder in holders.items()}
        # Fetches have their own threads, so that a module store that hangs stops no other work on threads.
        self._fetching = ThreadPoolExecutor(FETCHES, thread_name_prefix="modules")
        self.stale = False
        """Whether the places may have changed since the engine was last asked: see `refresh`."""

    @property
    def held(self) -> Places:
        """Digest to DEVICE or HOST, of every kind."""
        return {digest: place for room in self._rooms.values() for digest, place in room.held.items()}

    @property
    def used(self) -> list[str]:
        """Digests of the modules that requests under way use or wait for."""
        return sorted({digest for room in self._rooms.values() for digest in room.in_use})

    @property
    def pinned(self) -> list[tuple[ModuleKind, str]]:
        """Kinds and digests of the modules that stay until they are unloaded or unpinned."""
        return sorted((kind, digest) for kind, room in self._rooms.items() for digest in room.pinned)

    @contextlib.asynccontextmanager
    async def using(self, digest: str, kind: ModuleKind) -> AsyncIterator[None]:
        """Have the module loaded, and keep it loaded while the context is open. Raises as `load`."""
        async with self._room(digest, kind).using(digest, lambda: self.files(digest)):
            try:
                yield
            finally:
                # A step of the engine gives slots to the adapters that it needs, and takes slots from others.
                self.stale = True

    async def load(self, digest: str, kind: ModuleKind, *, pin: bool = False) -> ModulePlace:
        """Have the module loaded. While all held modules are in use, wait until one of them may leave.

        pin: the module stays until it is unloaded or unpinned.
        Raises InvalidModule when the engine refuses the module, ModuleRefused when waiting for room is of no
        use or no more modules may be pinned, and as `files`.
        """
        room = self._room(digest, kind)
        if pin:
            room.check_pin(digest)
        async with self.using(digest, kind):
            if pin:
                room.pin(digest)
            return room.held[digest]

    def unpin(self, digest: str, kind: ModuleKind) -> None:
        """Let the module leave when others need the room."""
        self._room(digest, kind).unpin(digest)

    async def unload(self, digest: str, kind: ModuleKind, *, forget: bool = False) -> ModulePlace:
        """Take the module out of the engine. Returns where it is after that.

        forget: delete the local copy of its files too. The files of the module store itself stay.
        Raises ModuleRefused while a request uses the module or waits for it.
        """
        await self._room(digest, kind).unload(digest)
        if forget:
            await asyncio.to_thread(self.copies.forget, digest)
        return await self._place_on_disk(digest)

    async def place(self, digest: str) -> ModulePlace:
        """Where the module is, whatever its kind. This asks neither the engine nor the module store.

        Raises InvalidModule for a text that is no digest.
        """
        _check_digest(digest)
        return self.held.get(digest) or await self._place_on_disk(digest)

    async def files(self, digest: str) -> Path:
        """The folder with the module's files. They are fetched if they are not here, and verified.

        Raises ModuleNotFound, BlobDamaged, BlobStoreUnavailable and OSError.
        """
        _check_digest(digest)
        return await asyncio.get_running_loop().run_in_executor(self._fetching, self.copies.fetch, digest)

    async def refresh(self) -> None:
        """Ask the engine where its modules are. This interrupts the engine, so ask only when `stale`."""
        self.stale = False
        for room in self._rooms.values():
            await room.refresh()

    async def _place_on_disk(self, digest: str) -> ModulePlace:
        return ModulePlace.DISK if await asyncio.to_thread(self.copies.has, digest) else ModulePlace.ABSENT

    def _room(self, digest: str, kind: ModuleKind) -> Room:
        _check_digest(digest)
        if kind not in self._rooms:
            raise ModuleRefused(digest, f"this worker holds no modules of kind {kind}: {self.absent[kind]}")
        return self._rooms[kind]


def _check_digest(digest: str) -> None:
    if not is_sha256(digest):
        raise InvalidModule("digest", "must be 64 lower-case hex digits")
