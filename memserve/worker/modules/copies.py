"""The module files on a worker's disk: fetched, verified, read ahead, and dropped when they are unused for
long. All of it blocks.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

from memserve.errors import BlobDamaged
from memserve.memory.modules.blobs.places import MANIFEST_FILE
from memserve.memory.modules.blobs.store import BlobStore

COPIES_KEPT = 256
UNUSED_S = 600.0
# Longer than anybody writes nothing to what it stages.
LEFTOVER_AGE_S = 600.0
READ_BYTES = 1 << 20


class LocalCopies:
    """Copies of what a remote module store keeps, or the store itself where it is this directory.

    Workers may share the directory, so the time of a copy's last use is that of its `blob.json`, for all of
    them.
    """

    def __init__(self, blobs: BlobStore, *, kept: int = COPIES_KEPT, unused_s: float = UNUSED_S) -> None:
        """kept: copies that stay however long they have not been used."""
        self._blobs = blobs
        self._modules, _ = blobs.parts
        self._kept = kept
        self._unused_s = unused_s
        self._verified: set[str] = set()

    def fetch(self, digest: str) -> Path:
        """Have the files here, sound, and in the page cache: the engine reads them between two steps of the
        streams of others.

        The first time every byte is held against the sha256 that it was put with; a damaged copy is fetched
        again. Raises ModuleNotFound, BlobDamaged, BlobStoreUnavailable and OSError.
        """
        folder = self._blobs.local(digest)
        # First, so that nobody drops it meanwhile.
        self._touch(digest)
        if digest in self._verified:
            _read(folder)
        else:
            self._verify(digest)
            self._verified.add(digest)
        return folder

    def has(self, digest: str) -> bool:
        return self._blobs.has_local(digest)

    def forget(self, digest: str) -> bool:
        """Remove the copy, where it is one. Returns whether there was one."""
        self._verified.discard(digest)
        return self._blobs.forget_local(digest)

    def drop_unused(self, held: Collection[str], now_s: float) -> int:
        """Drop the least recently used copies beyond those kept. held: digests in the engine, which are in
        use. Returns how many.
        """
        # A digest that is not here any more is fetched and verified anew, and would be remembered for ever.
        self._verified = {digest for digest in self._verified if self.has(digest)}
        if self._modules.is_local:
            return 0
        copies = self._modules.copies
        for digest in held:
            self._touch(digest)
        used = sorted(
            (used_s, digest)
            for digest in copies.digests()
            if (used_s := copies.changed_s(digest)) is not None
        )
        beyond = used[: max(0, len(used) - self._kept)]
        return sum(
            self.forget(digest)
            for used_s, digest in beyond
            if digest not in held and now_s - used_s >= self._unused_s
        )

    def sweep_leftovers(self, now_s: float) -> int:
        """Remove what fetches that were cut off have left, and copies of what the store has no longer.
        Returns how many.

        Raises BlobStoreUnavailable.
        """
        return sum(part.sweep_leftovers(LEFTOVER_AGE_S, now_s) for part in self._blobs.parts)

    def _verify(self, digest: str) -> None:
        """Reads every file."""
        copies = self._modules.copies
        if copies.sound(digest) is not None:
            return
        if not self._modules.is_local:
            self.forget(digest)
            self._blobs.local(digest)
        if copies.sound(digest) is None:
            raise BlobDamaged(digest, "a file has another size or sha256")

    def _touch(self, digest: str) -> None:
        if not self._modules.is_local:
            with contextlib.suppress(FileNotFoundError):
                os.utime(self._modules.copies.folder(digest) / MANIFEST_FILE)


def _read(folder: Path) -> None:
    for file in folder.iterdir():
        with file.open("rb") as stream:
            while stream.read(READ_BYTES):
                pass
