"""A model's files in a store that fsspec reaches: s3://, gs://, https://, file://, Hugging Face and others.

Every store is asked for a list of files, and for one file after the other. Its own client does the rest.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import fsspec

from memserve.errors import StartupError
from memserve.model.fetch.sources import DEPTH_MAX, FILES_MAX, RemoteFile, Source, check_name, is_wanted
from memserve.model.weights import is_other_weights

# What stores call the digest, the version or the time of a file's content. Those that one has are taken.
_IDENTITY = (
    "ETag", "etag", "blob_id", "md5Hash", "content_md5", "checksum", "VersionId", "generation",
    "Content-MD5", "Digest", "LastModified", "last_modified", "Last-Modified", "mtime", "created",
)  # fmt: skip
_FULL = (errno.ENOSPC, errno.EDQUOT)
# Of http stores: to connect, and between two pieces. A whole file takes as long as it takes.
_CONNECT_S, _SILENCE_S = 30.0, 60.0


class Store(Protocol):
    """Where a model's files come from."""

    def files(self, *, weights: bool) -> list[RemoteFile]:
        """The wanted files, by name. Raises StoreFailed, and StartupError for a name that is refused."""

    def other_weights(self) -> list[str]:
        """Names of files that may be weights that memserve does not read. Raises StoreFailed."""

    def get(self, name: str, target: Path) -> None:
        """Write one file. Raises StoreFailed."""


class StoreFailed(StartupError):
    """The store has not given what was asked for."""

    def __init__(self, what: str, is_final: bool) -> None:
        super().__init__(what)
        self.is_final = is_final
        """Whether another try makes no difference."""


def open_store(source: Source, setting: str) -> Store:
    """Raises StartupError when nothing that is installed reaches the store, and StoreFailed."""
    url, options = source.name, {}
    if source.is_hub:
        url = f"hf://{source.name}@{_commit(source.name)}"
    elif url.startswith(("http://", "https://")):
        options = _patient()
    try:
        files, root = fsspec.core.url_to_fs(
            url, use_listings_cache=False, skip_instance_cache=True, **options
        )
    except (ImportError, ValueError) as error:
        raise StartupError(f"setting {setting}: {error}") from None
    return FsspecStore(files, str(root))


class FsspecStore:
    """A directory of a file system of fsspec."""

    def __init__(self, files: Any, root: str) -> None:
        self._files = files
        self._root = root.rstrip("/")

    def files(self, *, weights: bool) -> list[RemoteFile]:
        found = self._found()
        if len(found) > FILES_MAX:
            raise StartupError(f"the store has {len(found)} files there; a model has at most {FILES_MAX}")
        begin = self._root + "/"
        names = {path.removeprefix(begin): path for path in found if path.startswith(begin)}
        for name in names:
            check_name(name)
        return [
            self._file(name, names[name], found[names[name]])
            for name in sorted(names)
            if is_wanted(name, weights=weights)
        ]

    def other_weights(self) -> list[str]:
        names = (path.removeprefix(f"{self._root}/") for path in sorted(self._found()))
        return [name for name in names if name.isprintable() and is_other_weights(name)]

    def get(self, name: str, target: Path) -> None:
        with _facts(name):
            self._files.get_file(f"{self._root}/{name}", str(target))

    def _found(self) -> dict[str, dict[str, Any]]:
        with _facts("its list of files"):
            found: dict[str, dict[str, Any]] = self._files.find(self._root, maxdepth=DEPTH_MAX, detail=True)
        return found

    def _file(self, name: str, path: str, info: dict[str, Any]) -> RemoteFile:
        if info.get("size") is None:
            with _facts(name):
                info = self._files.info(path)
        size = info.get("size")
        said = {key: str(info[key]) for key in _IDENTITY if info.get(key) is not None}
        identity = hashlib.sha256(json.dumps([size, said], sort_keys=True).encode()).hexdigest()
        return RemoteFile(name, None if size is None else int(size), identity)


def hub_snapshot(name: str) -> Path | None:
    """What Hugging Face's own cache on this machine has of a model, whole or not. None: nothing."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None


def _commit(name: str) -> str:
    """The commit that a model's main branch is at, so that all files are of one."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.utils import disable_progress_bars

    if constants.is_offline_mode():
        why = "Hugging Face: HF_HUB_OFFLINE is set, and its cache on this machine does not have the model"
        raise StoreFailed(why, is_final=True)
    disable_progress_bars()
    with _facts("Hugging Face"):
        return str(HfApi().model_info(name).sha)


def _patient() -> dict[str, Any]:
    """fsspec's client for http gives a file five minutes, however large it is."""
    try:
        from aiohttp import ClientTimeout
    except ImportError:
        return {}
    timeout = ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_SILENCE_S)
    return {"client_kwargs": {"timeout": timeout}}


@contextlib.contextmanager
def _facts(what: str) -> Iterator[None]:
    """Raises StoreFailed for every failure. The file systems of fsspec have many exceptions."""
    try:
        yield
    except StartupError:
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0][:300]
        raise StoreFailed(f"{what}: {type(error).__name__}: {first}", _is_final(error)) from error


def _is_final(error: BaseException) -> bool:
    """A file that is not there, a store that does not know us, a full disk here."""
    status = getattr(getattr(error, "response", None), "status_code", None) or getattr(error, "status", None)
    if isinstance(status, int) and 400 <= status < 500 and status not in (408, 425, 429):
        return True
    kinds = (FileNotFoundError, PermissionError, NotADirectoryError, ImportError, NotImplementedError)
    return isinstance(error, kinds) or (isinstance(error, OSError) and error.errno in _FULL)
