"""Looks for erased texts in files. Blocking."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

NEEDLE_MIN_BYTES = 16
"""A shorter text stands in files by chance."""
SCAN_MAX_BYTES = 4 << 30
"""Of all files of one folder. A larger folder is not looked through to its end."""


def needles_of(texts: Sequence[str]) -> list[bytes]:
    """What to look for: each text as it is, and as JSON has it."""
    needles = []
    for text in texts:
        for spelled in (text, _as_json(text)):
            needle = spelled.encode("utf-8", "replace")
            if len(needle) >= NEEDLE_MIN_BYTES:
                needles.append(needle)
    return list(dict.fromkeys(needles))


def files_with(folder: Path, needles: Sequence[bytes]) -> tuple[list[str], bool]:
    """The files below a folder that have one of the needles, and whether all files were looked at.

    A compressed file may have a text that is not seen.
    """
    found: list[str] = []
    left = SCAN_MAX_BYTES
    for parent, _, names in os.walk(folder):
        for name in names:
            file = Path(parent) / name
            try:
                size_bytes = file.stat().st_size
                if left < size_bytes:
                    return found, False
                left -= size_bytes
                if size_bytes and _has(file, needles):
                    found.append(str(file.relative_to(folder)))
            except (OSError, ValueError):
                continue  # it left, or is no plain file
    return found, True


def _has(file: Path, needles: Sequence[bytes]) -> bool:
    if not file.is_file() or file.is_symlink():
        return False
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(needle) >= 0 for needle in needles)


def _as_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
