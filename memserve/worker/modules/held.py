"""The modules of one engine: loaded ahead or on demand, kept while they are used or pinned, out when others
need the room.
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

# Modules that are fetched at the same time.
FETCHES = 4


class Modules:
    """What an engine holds. Places are the engine's own word, as of when it was last asked."""

    def __init__(
        self, copies: LocalCopies, holders: Mapping[ModuleKind, Holder], absent: Mapping[ModuleKind, str]
    ) -> None:
        """absent: kinds that the engine holds none of, and why."""
        self.copies = copies
        self.absent = absent
        self._rooms = {kind: Room(holder) for kind, holder in holders.items()}
        # Of its own: a module store that does not answer must not hold up what else is done in threads.
        self._fetching = ThreadPoolExecutor(FETCHES, thread_name_prefix="modules")
        self.stale = False

    @property
    def held(self) -> Places:
        """Digest to DEVICE or HOST, of every kind."""
        return {digest: place for room in self._rooms.values() for digest, place in room.held.items()}

    @property
    def used(self) -> list[str]:
        """Digests of the modules that requests under way use, and of those that are being loaded."""
        return sorted({digest for room in self._rooms.values() for digest in room.in_use})

    @property
    def pinned(self) -> list[tuple[ModuleKind, str]]:
        """Kinds and digests of what stays until it is unloaded or unpinned."""
        return sorted((kind, digest) for kind, room in self._rooms.items() for digest in room.pinned)

    @contextlib.asynccontextmanager
    async def using(self, digest: str, kind: ModuleKind) -> AsyncIterator[None]:
        """Have the module loaded, and keep it loaded while the context is open. Raises as `load`."""
        async with self._room(digest, kind).using(digest, lambda: self.files(digest)):
            try:
                yield
            finally:
                # A step puts the adapters that it needs into slots, and others out of theirs.
                self.stale = True

    async def load(self, digest: str, kind: ModuleKind, *, pin: bool = False) -> ModulePlace:
        """Have the module loaded; where all that is held is in use, wait until one may leave. pin: it stays
        until it is unloaded.

        Raises InvalidModule when the engine refuses it, ModuleRefused when all that is held is pinned or no
        more may be, and as `files`.
        """
        room = self._room(digest, kind)
        if pin:
            room.check_pin(digest)
        async with self.using(digest, kind):
            if pin:
                room.pin(digest)
            return room.held[digest]

    def unpin(self, digest: str, kind: ModuleKind) -> None:
        """Let it leave when others need the room."""
        self._room(digest, kind).unpin(digest)

    async def unload(self, digest: str, kind: ModuleKind, *, forget: bool = False) -> ModulePlace:
        """Take the module out of the engine. forget: delete the local copy of its files too, where it is one.

        Raises ModuleRefused while a request uses it.
        """
        await self._room(digest, kind).unload(digest)
        if forget:
            await asyncio.to_thread(self.copies.forget, digest)
        return await self._place_on_disk(digest)

    async def place(self, digest: str) -> ModulePlace:
        """Where the module is, whatever its kind. Asks neither the engine nor the module store. Raises
        InvalidModule for no digest.
        """
        _check_digest(digest)
        return self.held.get(digest) or await self._place_on_disk(digest)

    async def files(self, digest: str) -> Path:
        """The folder with the module's files, fetched where it is not here, and verified.

        Raises ModuleNotFound, BlobDamaged, BlobStoreUnavailable and OSError.
        """
        _check_digest(digest)
        return await asyncio.get_running_loop().run_in_executor(self._fetching, self.copies.fetch, digest)

    async def refresh(self) -> None:
        """Ask the engine where its modules are. Every question interrupts it, so ask only when `stale`."""
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
