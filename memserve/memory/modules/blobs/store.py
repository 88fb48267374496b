"""The module store's blobs: modules under their content digest, and probe sets under theirs.

A blob is a folder of files. The store is a directory or any fsspec URL. Workers read blobs as folders under a
local root. `blob.json` has the size and sha256 of every file of a blob. It is written last: a folder without
it is no blob. Everything here blocks, except `sweep`.
"""

from __future__ import annotations

import hashlib
import shutil
import uuid
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from memserve.errors import BlobDamaged, ModuleNotFound
from memserve.memory.modules.blobs.places import (
    BlobPlace,
    Directory,
    Manifest,
    Source,
    answering,
    check_digest,
    has_facts,
)
from memserve.memory.modules.kinds.table import PROBES_FILE
from memserve.turns import on_own_thread

T = TypeVar("T")

PROBES = "probes"
# How long a digest stays condemned when the sweep that condemned it dies. Deleting a blob takes less time.
CONDEMNED_S = 600.0


class References(Protocol):
    """The registry's knowledge about the uses of a digest, which is a module's or a probe set's."""

    async def referenced(self, digest: str) -> bool: ...

    async def block_publishing(self, digest: str, token: str, seconds: float) -> bool:
        """Condemn the digest: it cannot get a reference for this number of seconds.

        token: names the caller, for `allow_publishing`.
        False: the digest has a reference, a publisher claims it, or another caller has condemned it.
        """
        ...

    async def allow_publishing(self, digest: str, token: str) -> None: ...


class Run(Protocol):
    """Runs blocking work off the event loop."""

    def __call__(self, work: Callable[[], T]) -> Awaitable[T]: ...


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep removed."""

    modules: tuple[str, ...]
    """Digests of modules."""
    probes: tuple[str, ...]
    """Digests of probe sets."""
    leftovers: int
    """The number of staging folders, and of local copies of blobs that are no longer in the store."""


class BlobStore:
    """Modules and probe sets by digest.

    The store keeps them. `local_root/<digest>` has a module as a folder that vLLM can read.
    """

    def __init__(self, url: str, local_root: Path) -> None:
        """url: a directory or an fsspec URL. If it is empty or names the local root, that is the store."""
        self._modules = Blobs(url, local_root)
        self._probes = Blobs(
            f"{url}{'' if url.endswith('/') else '/'}{PROBES}" if url else "", local_root / PROBES
        )

    @property
    def parts(self) -> tuple[Blobs, Blobs]:
        """The blobs of modules, and the blobs of probe sets."""
        return self._modules, self._probes

    def put(
        self,
        digest: str,
        folder: Path,
        *,
        rewritten: Mapping[str, bytes] | None = None,
        without: Collection[str] = (),
        expected: Mapping[str, str] | None = None,
    ) -> int:
        """Keep the files of `folder` durably.

        A module that is already in the store is read. If it is sound, only its age starts anew. If it is
        damaged, it is replaced.

        rewritten: file name to the bytes that are kept in the place of the folder's file.
        without: names of files that are not kept.
        expected: file name to the sha256, hex, that the folder's file must have while it is copied. Files
        without an entry may have any.
        Returns the kept bytes. Raises InvalidModule for a file with another sha256, and BlobStoreUnavailable.
        """
        with answering():
            files = sorted(folder.iterdir())
        sources: dict[str, Source] = {file.name: file for file in files if file.name not in without}
        return self._modules.put(digest, {**sources, **(rewritten or {})}, expected or {})

    def exists(self, digest: str) -> bool:
        """Whether the store has every file of the module with its size. Raises BlobStoreUnavailable."""
        return self._modules.exists(digest)

    def local(self, digest: str) -> Path:
        """The local folder with the module's files. A missing folder is fetched from the store and verified.

        Raises ModuleNotFound, BlobDamaged and BlobStoreUnavailable.
        """
        return self._modules.local(digest)

    def has_local(self, digest: str) -> bool:
        return self._modules.has_local(digest)

    def forget_local(self, digest: str) -> bool:
        """Remove the local copy, unless the local root is the store. Returns whether a copy was removed."""
        return self._modules.forget_local(digest)

    def delete(self, digest: str) -> None:
        """Raises BlobStoreUnavailable."""
        self._modules.delete(digest)

    def digests(self, now_s: float) -> Iterator[tuple[str, float]]:
        """The digest and the age in seconds of every module in the store. Raises BlobStoreUnavailable."""
        return self._modules.ages(now_s)

    def put_probes(self, content: bytes) -> str:
        """Keep the canonical bytes of a probe set. Returns its digest. Raises BlobStoreUnavailable."""
        digest = hashlib.sha256(content).hexdigest()
        self._probes.put(digest, {PROBES_FILE: content})
        return digest

    def probes(self, digest: str) -> bytes:
        """The bytes of a probe set. Raises ModuleNotFound, BlobDamaged and BlobStoreUnavailable."""
        file = self._probes.local(digest) / PROBES_FILE
        with answering():
            content = file.read_bytes()
        if hashlib.sha256(content).hexdigest() != digest:
            raise BlobDamaged(digest, f"{PROBES_FILE} has another sha256")
        return content

    def probe_digests(self, now_s: float) -> Iterator[tuple[str, float]]:
        """The digest and the age in seconds of every probe set in the store. Raises BlobStoreUnavailable."""
        return self._probes.ages(now_s)

    def delete_probes(self, digest: str) -> None:
        """Raises BlobStoreUnavailable."""
        self._probes.delete(digest)


class Blobs:
    """One set of blobs: the place that keeps them, and the directory with local copies.

    The place and the directory are the same object when the store is local.
    """

    def __init__(self, url: str, local_root: Path) -> None:
        self.copies = Directory(local_root)
        self.store: BlobPlace = self.copies
        if "://" in url:
            from memserve.memory.modules.blobs.remote import FsspecPlace

            self.store = FsspecPlace(url)
        elif url and Path(url).expanduser().resolve() != local_root.resolve():
            self.store = Directory(Path(url).expanduser())

    @property
    def is_local(self) -> bool:
        return self.store is self.copies

    def put(
        self, digest: str, sources: Mapping[str, Source], expected: Mapping[str, str] | None = None
    ) -> int:
        check_digest(digest)
        size_bytes = self.store.put(digest, sources, expected or {})
        # `local` checks only the sizes of a copy. Without this check it would always return a copy whose
        # files have the right sizes and wrong bytes.
        if not self.is_local and self.copies.intact(digest) and self.copies.sound(digest) is None:
            self.copies.delete(digest)
        return size_bytes

    def local(self, digest: str) -> Path:
        check_digest(digest)
        if self.copies.intact(digest):
            return self.copies.folder(digest)
        if self.is_local:
            if self.copies.changed_s(digest) is not None:
                raise BlobDamaged(digest, "a file is missing or has another size")
            raise ModuleNotFound(digest)
        staged = self.copies.stage()
        try:
            manifest = self._fetch(digest, staged)
            self.copies.adopt(digest, staged, manifest)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        return self.copies.folder(digest)

    def exists(self, digest: str) -> bool:
        check_digest(digest)
        return self.store.intact(digest)

    def has_local(self, digest: str) -> bool:
        return self.copies.intact(digest)

    def forget_local(self, digest: str) -> bool:
        check_digest(digest)
        return not self.is_local and self.copies.delete(digest)

    def delete(self, digest: str) -> None:
        check_digest(digest)
        self.store.delete(digest)
        if not self.is_local:
            self.copies.delete(digest)

    def ages(self, now_s: float) -> Iterator[tuple[str, float]]:
        for digest in self.store.digests():
            changed_s = self.store.changed_s(digest)
            if changed_s is not None and self.store.manifest(digest) is not None:
                yield digest, now_s - changed_s

    def sweep_leftovers(self, min_age_s: float, now_s: float) -> int:
        """Remove old staging folders, and old copies of blobs that are not in the store. Returns how many."""
        removed = self.copies.sweep_staging(min_age_s, now_s)
        if self.is_local:
            return removed
        if isinstance(self.store, Directory):
            removed += self.store.sweep_staging(min_age_s, now_s)
        for digest in self.copies.digests():
            changed_s = self.copies.changed_s(digest)
            old = changed_s is not None and now_s - changed_s >= min_age_s
            if old and self.store.manifest(digest) is None:
                removed += self.copies.delete(digest)
        return removed

    def _fetch(self, digest: str, target: Path) -> Manifest:
        manifest = self.store.fetch(digest, target)
        if manifest is None:
            if self.store.changed_s(digest) is not None:
                raise BlobDamaged(digest, "its list of files is missing or unreadable")
            raise ModuleNotFound(digest)
        for name, facts in manifest.items():
            if not has_facts(target / name, facts):
                raise BlobDamaged(digest, f"{name} is missing or has another size or sha256")
        return manifest


async def sweep(
    blobs: BlobStore, references: References, min_age_s: float, now_s: float, run: Run = on_own_thread
) -> Swept:
    """Remove the blobs that have no reference and that were not put within `min_age_s`.

    Partly put blobs and old staging folders are removed too. A publisher claims its digests before it puts,
    and a claimed digest cannot be condemned. A publisher cannot register a digest after its claim has expired
    or after a sweep has condemned the digest. It then claims and puts again.

    min_age_s: longer than a put or a fetch takes.
    run: does the blocking work.
    Raises BlobStoreUnavailable, and the errors of `references`.
    """
    modules, probes = [
        await _sweep_unreferenced(part, references, min_age_s, now_s, run) for part in blobs.parts
    ]
    leftovers = [await run(partial(part.sweep_leftovers, min_age_s, now_s)) for part in blobs.parts]
    return Swept(modules, probes, sum(leftovers))


async def _sweep_unreferenced(
    blobs: Blobs, references: References, min_age_s: float, now_s: float, run: Run
) -> tuple[str, ...]:
    removed = []
    for digest in await run(lambda: list(blobs.store.digests())):
        if await references.referenced(digest) or not await run(
            partial(_is_old, blobs.store, digest, min_age_s, now_s)
        ):
            continue
        token = uuid.uuid4().hex
        if not await references.block_publishing(digest, token, CONDEMNED_S):
            continue
        try:
            # The age is looked at again now that the digest cannot be registered: a publisher may have put
            # the blob since the first look.
            if await run(partial(_is_old, blobs.store, digest, min_age_s, now_s)):
                await run(partial(blobs.delete, digest))
                removed.append(digest)
        finally:
            await references.allow_publishing(digest, token)
    return tuple(removed)


def _is_old(place: BlobPlace, digest: str, min_age_s: float, now_s: float) -> bool:
    changed_s = place.changed_s(digest)
    return changed_s is not None and now_s - changed_s >= min_age_s
