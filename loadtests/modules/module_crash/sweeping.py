"""What a sweep at the end removes and leaves."""

from __future__ import annotations

import time
from dataclasses import dataclass

import redis

from memserve.embedded import Stack
from memserve.memory.modules.blobs.store import BlobStore, Swept, sweep
from memserve.memory.modules.registry.store import ModuleStore
from memserve.memory.modules.uploads import sweep_uploads


@dataclass(frozen=True, slots=True)
class Left:
    """What a sweep removes and leaves."""

    orphans_before: int
    """Blobs that nothing referenced before the sweep."""
    removed: int
    orphans: int
    """The same after the sweep."""
    leftovers: int
    """Files of uploads that were cut off."""
    taken: int
    """Blobs that the sweep removed though something references them."""


async def sweep_all(stack: Stack, wanted: set[str]) -> Left:
    """Let the claims of the dead run out, as ten minutes would, and sweep. wanted: digests of the modules and
    probes of all versions.
    """
    with redis.Redis.from_url(stack.settings.redis) as registry:
        for kind in ("claims", "condemned"):
            for key in list(registry.scan_iter(f"memserve:module:{kind}:*")):
                registry.delete(key)
    root, staging = stack.settings.modules_root / "modules", stack.settings.data / "staging"
    blobs, store = BlobStore("", root), ModuleStore(stack.settings.redis)

    def kept() -> set[str]:
        return {*blobs.parts[0].store.digests(), *blobs.parts[1].store.digests()}

    before = kept()
    try:
        swept: Swept = await sweep(blobs, store, 0.0, time.time())
    finally:
        await store.close()
    sweep_uploads(staging, 0.0, time.time())
    left = [
        path
        for place in (staging, root / ".staging", root / "probes" / ".staging")
        for path in place.glob("*/*")
        if path.exists()
    ]
    return Left(
        len(before - wanted),
        len(swept.modules) + len(swept.probes),
        len(kept() - wanted),
        len(left),
        len(wanted - kept()),
    )
