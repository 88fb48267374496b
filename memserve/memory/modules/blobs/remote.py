"""Blobs in any storage that fsspec reaches: s3://, gs://, abfs:// and others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC
from pathlib import Path

import fsspec

from memserve.errors import BlobStoreUnavailable, MemserveError, StartupError
from memserve.memory.modules.blobs.places import (
    MANIFEST_FILE,
    FileFacts,
    Manifest,
    Source,
    check_digest,
    check_expected,
    check_sources,
    copied,
    decoded,
    encoded,
    opened,
    reason,
    total_bytes,
)


class FsspecPlace:
    """A place with the objects `<url>/<digest>/<sha256 of the file>` and `<url>/<digest>/blob.json`.

    `blob.json` says which object is which file. An object store has no rename. Two puts of one digest at the
    same time may bring files that differ in form. Every file lies under its own sha256, so the list of files
    that is written last is true in any case.
    """

    def __init__(self, url: str) -> None:
        """Raises StartupError when the URL's scheme is unknown, or when its package is not installed."""
        try:
            # A cache of listings would hide the blobs that other gateways put.
            self._fs, self._root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise StartupError(f"module_store_url: {error}") from None
        self._url = url

    def put(self, digest: str, sources: Mapping[str, Source], expected: Mapping[str, str]) -> int:
        check_sources(sources)
        with _facts(self._url):
            manifest = self.manifest(digest)
            if manifest is None or not self._sound(digest, manifest):
                manifest = {name: _source_facts(name, source, expected) for name, source in sources.items()}
                self._fs.makedirs(self._path(digest), exist_ok=True)
                for name, source in sources.items():
                    self._upload(name, source, self._path(digest, manifest[name].sha256), manifest[name])
            # The list of files is written last: without it there is no blob. An existing list is written
            # again, so that the age of the blob starts anew.
            self._fs.pipe_file(self._path(digest, MANIFEST_FILE), encoded(manifest))
        return total_bytes(manifest)

    def manifest(self, digest: str) -> Manifest | None:
        with _facts(self._url):
            try:
                return decoded(self._fs.cat_file(self._path(digest, MANIFEST_FILE)))
            except FileNotFoundError:
                return None

    def intact(self, digest: str) -> bool:
        manifest = self.manifest(digest)
        return manifest is not None and self._whole(digest, manifest)

    def fetch(self, digest: str, target: Path) -> Manifest | None:
        manifest = self.manifest(digest)
        with _facts(self._url):
            for name, facts in (manifest or {}).items():
                try:
                    self._fs.get_file(self._path(digest, facts.sha256), str(target / name))
                except FileNotFoundError:
                    continue
        return manifest

    def delete(self, digest: str) -> bool:
        with _facts(self._url):
            objects = self._objects(digest)
            # The list of files is removed first: without it the other objects are no blob.
            for path in sorted(objects, key=lambda path: not path.endswith(f"/{MANIFEST_FILE}")):
                try:
                    self._fs.rm_file(path)
                except FileNotFoundError:
                    continue
            if objects and self._fs.isdir(self._path(digest)):
                # Some file systems have real folders, and would keep an empty folder.
                self._fs.rmdir(self._path(digest))
        return bool(objects)

    def digests(self) -> Iterator[str]:
        with _facts(self._url):
            try:
                names = sorted(
                    {
                        str(path).rstrip("/").rsplit("/", 1)[-1]
                        for path in self._fs.ls(self._root, detail=False)
                    }
                )
            except FileNotFoundError:
                names = []
        for name in names:
            try:
                check_digest(name)
            except ValueError:
                continue
            yield name

    def changed_s(self, digest: str) -> float | None:
        with _facts(self._url):
            times = []
            for path in self._objects(digest):
                try:
                    at = self._fs.modified(path)
                except FileNotFoundError:
                    continue
                times.append((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())
        return max(times, default=None)

    def _whole(self, digest: str, manifest: Manifest) -> bool:
        with _facts(self._url):
            try:
                return all(
                    self._fs.info(self._path(digest, facts.sha256))["size"] == facts.size_bytes
                    for facts in manifest.values()
                )
            except FileNotFoundError:
                return False

    def _sound(self, digest: str, manifest: Manifest) -> bool:
        """Whether every file has its sha256. Reads the files only if all have their size."""
        return self._whole(digest, manifest) and all(
            self._has_facts(digest, facts) for facts in manifest.values()
        )

    def _has_facts(self, digest: str, facts: FileFacts) -> bool:
        try:
            with self._fs.open(self._path(digest, facts.sha256), "rb") as stream:
                return copied(stream) == facts
        except FileNotFoundError:
            return False

    def _objects(self, digest: str) -> list[str]:
        try:
            return [str(path) for path in self._fs.find(self._path(digest))]
        except FileNotFoundError:
            return []

    def _upload(self, name: str, source: Source, path: str, facts: FileFacts) -> None:
        """Copy a source to an object.

        Raises InvalidModule when the source has changed since its facts were taken. The object is then
        removed.
        """
        with opened(source) as read, self._fs.open(path, "wb") as written:
            sent = copied(read, written)
        if sent != facts:
            self._fs.rm_file(path)
            check_expected(name, source, sent, {name: facts.sha256})

    def _path(self, digest: str, name: str = "") -> str:
        check_digest(digest)
        return "/".join(part for part in (self._root.rstrip("/"), digest, name) if part)


def _source_facts(name: str, source: Source, expected: Mapping[str, str]) -> FileFacts:
    with opened(source) as stream:
        facts = copied(stream)
    check_expected(name, source, facts, expected)
    return facts


@contextmanager
def _facts(url: str) -> Iterator[None]:
    """Raises BlobStoreUnavailable for every failure. The file systems of fsspec have many exceptions."""
    try:
        yield
    except MemserveError:
        raise
    except Exception as error:
        raise BlobStoreUnavailable(f"{url.split('://', 1)[0]}: {reason(error)}") from error
