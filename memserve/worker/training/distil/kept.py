"""Which memories the checkpoints on this disk were made of, so that those of erased memories can go."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

MEMORIES_FILE = "memories.json"


def folder_of(root: Path, order: str) -> Path:
    """Of the checkpoint of a training. order: the digest of what is trained."""
    return root / order[:32]


class KeptTrainings:
    """The checkpoints in one folder. A checkpoint without a note of its memories counts as one of any."""

    def __init__(self, root: Path) -> None:
        self._root = root
        # Of the training under way; None without one.
        self._running: tuple[Path, frozenset[str]] | None = None
        self._is_condemned = False

    @contextlib.contextmanager
    def noting(self, order: str, keys: Collection[str]) -> Iterator[None]:
        """While a training runs. Where one of its memories was erased meanwhile, nothing is kept of it."""
        folder = folder_of(self._root, order)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MEMORIES_FILE).write_text(json.dumps(sorted(keys)), encoding="utf-8")
        self._running, self._is_condemned = (folder, frozenset(keys)), False
        try:
            yield
        finally:
            self._running = None
            if self._is_condemned:
                shutil.rmtree(folder, ignore_errors=True)

    def forget(self, keys: frozenset[str]) -> int:
        """Remove the checkpoints that were made of one of these memories. Returns how many they were."""
        if not keys or not self._root.is_dir():
            return 0
        forgotten = 0
        for folder in [entry for entry in self._root.iterdir() if entry.is_dir()]:
            if self._running is not None and folder == self._running[0]:
                if keys & self._running[1]:
                    self._is_condemned = True
                    forgotten += 1
            elif _is_of(folder, keys):
                shutil.rmtree(folder, ignore_errors=True)
                forgotten += 1
        return forgotten


def _is_of(folder: Path, keys: frozenset[str]) -> bool:
    try:
        noted = json.loads((folder / MEMORIES_FILE).read_text(encoding="utf-8"))
        return not keys.isdisjoint(map(str, noted))
    except (OSError, ValueError, TypeError):
        return True
