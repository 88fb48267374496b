"""The module store's blobs: folders of files under their content digest, and probe sets under theirs.
Everything here blocks but `sweep`.

The store is a directory or any fsspec URL; workers read blobs as folders under a local root. A blob counts
only when its `blob.json` is there, which is written last, and which tells every file's size and sha256.
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
# How long a digest stays condemned when whoever condemned it dies. Longer than deleting one blob takes.
CONDEMNED_S = 600.0


class References(Protocol):
    """Who uses a digest, a module's or a probe set's."""

    async def referenced(self, digest: str) -> bool: ...

    async def block_publishing(self, digest: str, token: str, seconds: float) -> bool:
        """Keep the digest from getting a reference for so long. False: it has one, a publisher claims it, or
        another has condemned it.
        """
        ...

    async def allow_publishing(self, digest: str, token: str) -> None: ...


class Run(Protocol):
    """Runs blocking work off the event loop."""

    def __call__(self, work: Callable[[], T]) -> Awaitable[T]: ...


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep removed. leftovers: folders of staging, and local copies of what the store has no
    longer.
    """

    modules: tuple[str, ...]
    probes: tuple[str, ...]
    leftovers: int


class BlobStore:
    """Modules by digest, kept in the store and, as folders that vLLM can read, under
    `local_root/<digest>`.
    """

    def __init__(self, url: str, local_root: Path) -> None:
        """url: a directory or an fsspec URL. Empty, or the local root itself: the local root is the store."""
        self._modules = Blobs(url, local_root)
        self._probes = Blobs(
            f"{url}{'' if url.endswith('/') else '/'}{PROBES}" if url else "", local_root / PROBES
        )

    @property
    def parts(self) -> tuple[Blobs, Blobs]:
        """Modules, probe sets."""
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
        """Keep the files of `folder`, durably. Putting again reads what is there: sound, it only gets young
        again; damaged, it is replaced.

        rewritten: file name to bytes that are kept instead of the folder's. without: files of the folder that
        are not kept. expected: file name to the sha256, hex, that the folder's file must still have while it
        is copied; other files may have any. Returns the bytes kept. Raises InvalidModule for a file with
        another sha256, and BlobStoreUnavailable.
        """
        with answering():
            files = sorted(folder.iterdir())
        sources: dict[str, Source] = {file.name: file for file in files if file.name not in without}
        return self._modules.put(digest, {**sources, **(rewritten or {})}, expected or {})

    def exists(self, digest: str) -> bool:
        """Whether the store has it, every file in its size. Raises BlobStoreUnavailable."""
        return self._modules.exists(digest)

    def local(self, digest: str) -> Path:
        """The folder with the module's files, fetched and verified where it is not here yet.

        Raises ModuleNotFound, BlobDamaged and BlobStoreUnavailable.
        """
        return self._modules.local(digest)

    def has_local(self, digest: str) -> bool:
        return self._modules.has_local(digest)

    def forget_local(self, digest: str) -> bool:
        """Remove the local copy, where it is one. Returns whether there was one."""
        return self._modules.forget_local(digest)

    def delete(self, digest: str) -> None:
        """Raises BlobStoreUnavailable."""
        self._modules.delete(digest)

    def digests(self, now_s: float) -> Iterator[tuple[str, float]]:
        """Every module in the store and its age in seconds. Raises BlobStoreUnavailable."""
        return self._modules.ages(now_s)

    def put_probes(self, content: bytes) -> str:
        """Keep a probe set. Returns its digest. Raises BlobStoreUnavailable."""
        digest = hashlib.sha256(content).hexdigest()
        self._probes.put(digest, {PROBES_FILE: content})
        return digest

    def probes(self, digest: str) -> bytes:
        """Raises ModuleNotFound, BlobDamaged and BlobStoreUnavailable."""
        file = self._probes.local(digest) / PROBES_FILE
        with answering():
            content = file.read_bytes()
        if hashlib.sha256(content).hexdigest() != digest:
            raise BlobDamaged(digest, f"{PROBES_FILE} has another sha256")
        return content

    def probe_digests(self, now_s: float) -> Iterator[tuple[str, float]]:
        """Every probe set in the store and its age in seconds. Raises BlobStoreUnavailable."""
        return self._probes.ages(now_s)

    def delete_probes(self, digest: str) -> None:
        """Raises BlobStoreUnavailable."""
        self._probes.delete(digest)


class Blobs:
    """One set of blobs: the place that keeps them and the directory that has copies; both are one where the
    store is local.
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
        # `local` sees sizes only: a copy with other bytes in them would be handed out for ever.
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
        """Remove old staging, and old copies of what the store has not got."""
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
    """Remove what nobody references and nobody has put for `min_age_s`, half-put blobs and old staging too.

    min_age_s: longer than a put or a fetch takes. A publisher claims its digests before it puts, which keeps
    them from being condemned, and cannot register them once the claim has run out or a sweep has condemned
    them: it then claims and puts again. run: where the blocking work is done. Raises BlobStoreUnavailable,
    and what the references raise.
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
            # Again, now that nobody can register it: a publisher may have put it in between.
            if await run(partial(_is_old, blobs.store, digest, min_age_s, now_s)):
                await run(partial(blobs.delete, digest))
                removed.append(digest)
        finally:
            await references.allow_publishing(digest, token)
    return tuple(removed)


def _is_old(place: BlobPlace, digest: str, min_age_s: float, now_s: float) -> bool:
    changed_s = place.changed_s(digest)
    return changed_s is not None and now_s - changed_s >= min_age_s
