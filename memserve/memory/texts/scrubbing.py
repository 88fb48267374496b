"""Looks for erased texts in files. Blocking."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NEEDLE_MIN_BYTES = 16
"""A shorter text stands in files by chance."""
SCAN_MAX_BYTES = 4 << 30
"""Of all files of one folder. A larger folder is not looked through to its end."""


@dataclass(frozen=True, slots=True)
class Trace:
    """What one erased memory may have left in a file."""

    key: bytes
    """Of its record."""
    needles: tuple[bytes, ...]
    """Each of its texts as it is, and as JSON has it."""


@dataclass(frozen=True, slots=True)
class Traces:
    """What a look through a folder has found."""

    own: tuple[str, ...] = ()
    """Files with a text and the key of its memory."""
    others: tuple[str, ...] = ()
    """Files with a text alone. Another memory, also of another tenant, may have the same one."""
    is_whole: bool = True
    """Whether all files were looked at."""


def trace_of(key: str, texts: Sequence[str]) -> Trace:
    needles = []
    for text in texts:
        for spelled in (text, _as_json(text)):
            needle = spelled.encode("utf-8", "replace")
            if len(needle) >= NEEDLE_MIN_BYTES:
                needles.append(needle)
    return Trace(key.encode(), tuple(dict.fromkeys(needles)))


def files_with(folder: Path, traces: Sequence[Trace]) -> Traces:
    """Look through the files below a folder. A compressed file may have a text that is not seen."""
    own: list[str] = []
    others: list[str] = []
    left = SCAN_MAX_BYTES
    for parent, _, names in os.walk(folder):
        for name in names:
            file = Path(parent) / name
            try:
                size_bytes = file.stat().st_size
                if left < size_bytes:
                    return Traces(tuple(own), tuple(others), False)
                left -= size_bytes
                if size_bytes and file.is_file() and not file.is_symlink():
                    has_text, has_key = _look(file, traces)
                    if has_text:
                        (own if has_key else others).append(str(file.relative_to(folder)))
            except (OSError, ValueError):
                continue  # it left, or is no plain file
    return Traces(tuple(own), tuple(others))


def _look(file: Path, traces: Sequence[Trace]) -> tuple[bool, bool]:
    """Whether the file has a text, and whether it has one together with the key of its memory."""
    has_text = False
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for trace in traces:
            if any(content.find(needle) >= 0 for needle in trace.needles):
                has_text = True
                if content.find(trace.key) >= 0:
                    return True, True
    return has_text, False


def _as_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
