"""Why memories, prefixes and backups are refused, and which store does not answer."""

from __future__ import annotations

from memserve.errors.base import MemserveError, PicklableError


class NamespaceNotFound(MemserveError):
    """The tenant has no memory namespace of this name."""

    def __init__(self, namespace: str) -> None:
        super().__init__(f"namespace {namespace!r} does not exist; the first Remember in it creates it")
        self.namespace = namespace


class ErasureNotFound(MemserveError):
    """The tenant has no erasure of this id, or it is no longer kept."""

    def __init__(self, erasure_id: str) -> None:
        super().__init__(f"no erasure {erasure_id!r} is kept; `memserve lineage erasures` lists them")


class MemoryNotFound(MemserveError):
    """The namespace has no memory with this id."""

    def __init__(self, memory_id: str) -> None:
        super().__init__(f"memory {memory_id!r} does not exist")
        self.memory_id = memory_id


class MemoryConflict(MemserveError):
    """The id already belongs to a memory with other content."""

    def __init__(self, memory_id: str) -> None:
        super().__init__(
            f"memory {memory_id!r} already exists with other content; forget it first or use another id"
        )
        self.memory_id = memory_id


class VersionConflict(MemserveError):
    """A change was meant for another version of a memory than the current one."""

    def __init__(self, memory_id: str, expected: int, current: int) -> None:
        super().__init__(
            f"memory {memory_id!r} has version {current} and not {expected}; read it, and change that version"
        )
        self.memory_id = memory_id
        self.current = current


class VersionNotFound(MemserveError):
    """A memory does not have this version (any more)."""

    def __init__(self, memory_id: str, version: str) -> None:
        super().__init__(f"memory {memory_id!r} has no {version}; its history lists what it has")
        self.memory_id = memory_id


class MatchesChanged(MemserveError):
    """A filter does not match what it matched in the dry run. Nothing was forgotten for it."""

    def __init__(self, matches: int) -> None:
        super().__init__(
            f"the filter matches {matches} memories now, and not those of the dry run; make another dry run"
        )


class ChangesMissed(MemserveError):
    """A tenant's feed of changes does not have all that came after a sequence."""

    def __init__(self, after_sequence: int) -> None:
        super().__init__(
            f"changes after {after_sequence} have left the feed, or that sequence was never given; list the "
            "memories, and watch from now on"
        )


class DiskFull(MemserveError):
    """The disk that a change would be written to has too little room."""

    reason = "disk_full"

    def __init__(self, disk: str, retry_after_s: float) -> None:
        super().__init__(
            f"{disk} is nearly full, so no changes are taken; make room there, and try again in "
            f"{retry_after_s:g} s"
        )
        self.retry_after_s = retry_after_s


class JournalFull(MemserveError):
    """Too many memories wait to become durable in the vector store. No more are taken."""

    reason = "queue_full"

    def __init__(self, waiting_bytes: int, retry_after_s: float) -> None:
        super().__init__(
            f"{waiting_bytes >> 20} MiB of memories wait until the vector store has written them, and no "
            f"more are taken; none is lost; try again in {retry_after_s:g} s"
        )
        self.retry_after_s = retry_after_s


class QuotaReached(MemserveError):
    """A tenant has reached a limit on what it may keep."""

    reason = "quota"
    retry_after_s = 60.0

    def __init__(self, what: str, limit: int, setting: str) -> None:
        super().__init__(
            f"{what}: the quota of {limit} is reached (setting {setting}); remove some, or have it raised"
        )


class PinnedMemoriesFull(QuotaReached):
    """A namespace may have no further pinned memory."""

    def __init__(self, namespace: str, memories_max: int, bytes_max: int) -> None:
        PicklableError.__init__(
            self,
            f"pinned: namespace {namespace} may have {memories_max} pinned memories, with {bytes_max} bytes "
            "of text together, and this one does not fit; unpin another one first",
        )


class PrefixNotStored(MemserveError):
    """A prefix cannot be pinned because Redis does not have all of it."""

    def __init__(self, stored: int, chunks: int) -> None:
        rule = (
            f"{stored} of its {chunks} chunks are in Redis; warm it first"
            if chunks
            else "it is shorter than one chunk and never stored"
        )
        super().__init__(f"the prefix cannot be pinned: {rule}")


class PinLimitReached(MemserveError):
    """The tenant has pinned as much as it may, or all tenants together have."""

    def __init__(self, tenant: str, pinned_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"tenant {tenant} has pinned {pinned_bytes} of {limit_bytes} bytes, and this prefix does not "
            "fit, there or in what all tenants may pin; unpin another first"
        )


class RegistryUnavailable(MemserveError):
    """The registry Redis does not answer, and the call needs it."""

    def __init__(self, detail: str) -> None:
        super().__init__(
            f"the registry does not answer ({detail}); a change may or may not have been made: look, and try "
            "again"
        )


class UnreadableRecord(MemserveError):
    """A record of the registry cannot be read. A newer memserve wrote it, or it is damaged."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(
            f"a record of the registry ({what}) cannot be read here: {why}; a newer memserve may have "
            "written it"
        )


class RegistryDiskFull(RegistryUnavailable):
    """The registry Redis answers, and takes no changes, because its disk is nearly full."""

    reason = "disk_full"

    def __init__(self, retry_after_s: float) -> None:
        MemserveError.__init__(
            self,
            "the registry's disk is nearly full, so no changes are taken; make room there, and try again "
            f"in {retry_after_s:g} s",
        )
        self.retry_after_s = retry_after_s


class CacheUnavailable(MemserveError):
    """The Redis of the KV cache does not answer, and the call needs it."""

    def __init__(self, detail: str) -> None:
        super().__init__(f"the KV cache does not answer ({detail}); try again")


class VectorStoreUnavailable(MemserveError):
    """The vector store does not answer, or not in time."""

    def __init__(self, detail: str) -> None:
        super().__init__(f"the vector store does not answer ({detail}); try again")


class EmbedderUnavailable(VectorStoreUnavailable):
    """The embedding model's endpoint does not answer as it should, or not in time."""

    def __init__(self, detail: str) -> None:
        MemserveError.__init__(self, f"no text can be embedded now: {detail}")


class VectorStoreHeld(MemserveError):
    """Another process holds the folder of Milvus Lite."""

    def __init__(self) -> None:
        super().__init__(
            "another process holds the vector store's folder; Milvus Lite serves one gateway: stop the "
            "other, or use a Milvus server"
        )


class VectorStoreDamaged(MemserveError):
    """The folder of Milvus Lite cannot be read."""

    def __init__(self, detail: str) -> None:
        super().__init__(f"the vector store is damaged ({detail}); `memserve restore` brings back a backup")
        self.detail = detail


class EmbedderChanged(MemserveError):
    """Another model embedded the stored memories."""

    def __init__(self, before: str, now: str) -> None:
        super().__init__(
            f"the memories here are embedded by {before}, and {now} would not find them: start with {before} "
            "as the setting embedder, and have `memserve memories reindex` embed them again by another model"
        )


class BackupExists(MemserveError):
    """A backup of this name exists."""

    def __init__(self, name: str) -> None:
        super().__init__(f"a backup {name!r} exists already; choose another name")


class BackupNotPossible(MemserveError):
    """memserve cannot back up this installation, or cannot do it now."""

    def __init__(self, why: str) -> None:
        super().__init__(f"no backup: {why}")


class BackupDamaged(MemserveError):
    """A backup's files are not the files that were backed up."""

    def __init__(self, why: str) -> None:
        super().__init__(f"this backup cannot be restored: {why}; use another")
