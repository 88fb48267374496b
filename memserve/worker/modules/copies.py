"""The module files on a worker's disk. They are fetched, verified and read ahead.

Copies that are unused for long are dropped. All calls here block.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

from memserve.errors import BlobDamaged
from memserve.memory.modules.blobs.places import MANIFEST_FILE
from memserve.memory.modules.blobs.store import BlobStore

# How many copies stay however long they are unused.
COPIES_KEPT = 256
# Other copies are dropped when they are unused for this long.
UNUSED_S = 600.0
# A staging folder that is unchanged for this long is left over. A fetch that goes on writes more often.
LEFTOVER_AGE_S = 600.0
READ_BYTES = 1 << 20


class LocalCopies:
    """Copies of a remote module store's modules, or the module store itself where it is this directory.

    Workers may share the directory. So the time of a copy's last use is kept on disk for all of them, as the
    modification time of its `blob.json`.
    """

    def __init__(self, blobs: BlobStore, *, kept: int = COPIES_KEPT, unused_s: float = UNUSED_S) -> None:
        """kept: how many copies stay however long they are unused.

        unused_s: other copies are dropped after this long.
        """
        self._blobs = blobs
        self._modules, _ = blobs.parts
        self._kept = kept
        self._unused_s = unused_s
        self._verified: set[str] = set()

    def fetch(self, digest: str) -> Path:
        """Have the files here, sound and in the page cache. Returns their folder.

        The engine reads them between two of its steps, while the answers of all requests wait. From the page
        cache it reads them fast.

        The first fetch compares every file with the sha256 that it was put with. A damaged copy is fetched
        again.

        Raises ModuleNotFound, BlobDamaged, BlobStoreUnavailable and OSError.
        """
        folder = self._blobs.local(digest)
        # The use is noted before the files are read, so that no worker drops the copy meanwhile.
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
        """Remove the copy. The files of the module store itself stay. Returns whether a copy was removed."""
        self._verified.discard(digest)
        return self._blobs.forget_local(digest)

    def drop_unused(self, held: Collection[str], now_s: float) -> int:
        """Drop the least recently used copies that are too many and unused for long. Returns how many.

        held: digests in the engine. They count as used now.
        """
        # A digest whose files are gone is verified anew when it is fetched. Here it would stay for ever.
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
        """Remove what interrupted fetches left, and old copies of modules that the store no longer has.

        Returns how many were removed. Raises BlobStoreUnavailable.
        """
        return sum(part.sweep_leftovers(LEFTOVER_AGE_S, now_s) for part in self._blobs.parts)

    def _verify(self, digest: str) -> None:
        """Check every file, and fetch a damaged copy again. Raises BlobDamaged when that does not help."""
        copies = self._modules.copies
        if copies.sound(digest) is not None:
            return
        if not self._modules.is_local:
            self.forget(digest)
            self._blobs.local(digest)
        if copies.sound(digest) is None:
            raise BlobDamaged(digest, "a file has another size or sha256")

    def _touch(self, digest: str) -> None:
        """Note that the copy is used now."""
        if not self._modules.is_local:
            with contextlib.suppress(FileNotFoundError):
                os.utime(self._modules.copies.folder(digest) / MANIFEST_FILE)


def _read(folder: Path) -> None:
    """Bring the folder's files into the page cache."""
    for file in folder.iterdir():
        with file.open("rb") as stream:
            while stream.read(READ_BYTES):
                pass
