"""How much room the disks have that memserve writes to.

memserve looks before it writes, so that no write meets a full disk.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from memserve.errors import DiskFull, MemserveError

LOOK_EVERY_S = 0.25
RETRY_AFTER_S = 5.0
DATA_DISK = "the disk that holds memserve's data"
# At most this share of a small file system is held back.
RESERVE_SHARE = 1 / 8
FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT}


class DiskWatch:
    """Whether the free space of some disks has come down to the room held back for memserve's own needs.

    A disk that cannot be looked at counts as having room. The write there will say what is wrong.
    """

    def __init__(
        self, places: Mapping[str, Path], reserve_bytes: int, room: Callable[[Path, int], float] | None = None
    ) -> None:
        """places: by a person's name for the disk, a folder on the disk.

        reserve_bytes: held back on each disk, at most an eighth of the disk.
        room: None for `free_share`.
        """
        self._room = room or free_share
        self._places = dict(places)
        self._reserve_bytes = reserve_bytes
        self._looked_s = -LOOK_EVERY_S
        self._short: str | None = None

    def short(self) -> str | None:
        """The disk that has too little room, or None."""
        if time.monotonic() - self._looked_s >= LOOK_EVERY_S:
            self._looked_s = time.monotonic()
            self._short = next(
                (name for name, place in self._places.items() if self._room(place, self._reserve_bytes) < 1),
                None,
            )
        return self._short

    def has_room(self) -> bool:
        return self.short() is None

    def check(self) -> None:
        """Raises DiskFull."""
        disk = self.short()
        if disk is not None:
            raise DiskFull(disk, RETRY_AFTER_S)


def free_share(place: Path, reserve_bytes: int) -> float:
    """The free room as a multiple of the room to hold back.

    Infinite where nothing is known about the disk.
    """
    try:
        room = os.statvfs(place)
    except OSError:
        return float("inf")
    reserve = min(reserve_bytes, room.f_blocks * room.f_frsize * RESERVE_SHARE)
    return room.f_bavail * room.f_frsize / reserve if reserve else float("inf")


def says_full(error: BaseException) -> bool:
    """Whether an error, or an error behind it, says that a disk is full."""
    seen: BaseException | None = error
    # An exception that a library keeps, and raises again for one that came from it, is behind itself.
    known: set[int] = set()
    while seen is not None and id(seen) not in known:
        known.add(id(seen))
        if isinstance(seen, OSError) and seen.errno in FULL_ERRNOS:
            return True
        # Milvus and others pass on the words alone. memserve's own errors may quote a caller, and do not
        # count.
        if not isinstance(seen, MemserveError) and os.strerror(errno.ENOSPC) in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
