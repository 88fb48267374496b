"""Where a model that was fetched or converted lies on this machine.

  <data_dir>/models/<name of a conversion, or key of a source>/
    lock            held by the process that makes it; the system frees it when that process dies
    partial/        what has not ended: of a fetch the whole files, and `<file>.part`, the one under way
    partial.json    what the store said of each whole file
    <model>/        the model, complete: it gets its name in one step
    model.json      what the store said of its files
    manifest.json   where the model is from, and its digest (`memserve/model/manifest.py`)

`<key>-small/` has the same for a gateway, without weights.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from memserve.errors import StartupError
from memserve.model.fetch.sources import RemoteFile, Source
from memserve.model.manifest import MANIFEST, Manifest, read_manifest
from memserve.private_files import open_data_dir, write_private

# How often a process looks whether another has ended its fetch, and how often it says that it waits.
LOOK_S, SAY_S = 0.2, 10.0


MODELS = "models"
SMALL = "-small"


def place_of(data: Path, source: Source, *, weights: bool) -> Place:
    """The place of what is fetched from a source."""
    return Place(data, source.key if weights else f"{source.key}{SMALL}", source.model)


class Place:
    """The folder of one model."""

    def __init__(self, data: Path, folder: str, model: str) -> None:
        """folder: its name in `models/`. model: the name of the model's directory in it."""
        self._data = data
        self._folder = data / MODELS / folder
        self.model = self._folder / model
        self.partial = self._folder / "partial"

    @property
    def is_complete(self) -> bool:
        return self.model.is_dir()

    @contextlib.contextmanager
    def held(self, say: Callable[[str], None]) -> Iterator[int]:
        """Only one process of this machine is inside. Raises StartupError where the folder cannot be made.

        Gives the descriptor of the lock. A child that inherits it holds the lock too.
        """
        open_data_dir(self._data)
        if self._folder.is_symlink():
            raise StartupError(f"{self._folder} is a link; memserve writes no model through it")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = (self._folder / "lock").open("w", encoding="utf-8")
        except OSError as error:
            raise StartupError(f"{self._folder}: {error.strerror}") from None
        with lock:
            said_s = -SAY_S
            while not _locked(lock.fileno()):
                if time.monotonic() - said_s >= SAY_S:
                    said_s = time.monotonic()
                    say(f"another process fetches or converts {self.model.name}; this one waits for it")
                time.sleep(LOOK_S)
            yield lock.fileno()

    def whole(self, files: list[RemoteFile]) -> set[str]:
        """The files that an earlier fetch has brought whole and the store still has. Others are removed."""
        self.partial.mkdir(mode=0o700, exist_ok=True)
        said = self._read("partial.json")
        known = {file.name for file in files if said.get(file.name) == file.identity}
        whole = {name for name in known if (self.partial / name).is_file()}
        for path in sorted(self.partial.rglob("*"), reverse=True):
            if path.is_file() and path.relative_to(self.partial).as_posix() not in whole:
                path.unlink()
        return whole

    def keep(self, file: RemoteFile) -> None:
        """`part_of(file)` has come whole: give it its name, and remember what it is."""
        part = self.part_of(file)
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.rename(self.partial / file.name)
        self._write("partial.json", {**self._read("partial.json"), file.name: file.identity})

    def part_of(self, file: RemoteFile) -> Path:
        """Where a file is written."""
        path = self.partial / f"{file.name}.part"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path

    def is_as(self, files: list[RemoteFile]) -> bool:
        """Whether the complete model is what the store has now."""
        return self._read("model.json") == {file.name: file.identity for file in files}

    @property
    def manifest(self) -> Manifest | None:
        """What was noted of the complete model. None: nothing, or nothing that can be read."""
        return read_manifest(self._folder)

    def complete(self, manifest: Manifest, files: Sequence[RemoteFile] = ()) -> None:
        """The partial model is whole. It takes the place of a model that was there before."""
        self._remove_model()
        self._write("model.json", {file.name: file.identity for file in files})
        self._note(manifest)
        self.partial.rename(self.model)
        (self._folder / "partial.json").unlink(missing_ok=True)

    def link(self, folder: Path, manifest: Manifest) -> None:
        """Have the model from another place on this machine."""
        self._remove_model()
        self._note(manifest)
        self.model.symlink_to(folder, target_is_directory=True)

    def fresh_partial(self) -> Path:
        """An empty folder for what is made anew."""
        self.drop_partial()
        self.partial.mkdir(mode=0o700)
        return self.partial

    def drop_partial(self) -> None:
        shutil.rmtree(self.partial, ignore_errors=True)
        (self._folder / "partial.json").unlink(missing_ok=True)

    def partial_bytes(self) -> int:
        """How much has been fetched."""
        total = 0
        for path in self.partial.rglob("*"):
            with contextlib.suppress(OSError):
                total += path.stat().st_size if path.is_file() else 0
        return total

    def _remove_model(self) -> None:
        if self.model.is_symlink():
            self.model.unlink()
        elif self.model.exists():
            # A process that has it open keeps its files.
            shutil.rmtree(self.model)

    def _note(self, manifest: Manifest) -> None:
        write_private(self._folder / MANIFEST, manifest.to_json())

    def _read(self, name: str) -> dict[str, str]:
        try:
            value = json.loads((self._folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}

    def _write(self, name: str, value: dict[str, str]) -> None:
        write_private(self._folder / name, json.dumps(value, indent=1).encode())


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
