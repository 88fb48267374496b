"""The names, bounds and end of a cube.

A cube is a zip file. Its entries stand one behind the other from the first byte, in this order: the memories,
the modules, `cube.json` with the size and sha256 of each, and a signature. The file ends with the zip's
comment: the sha256 of every byte before it.
"""

from __future__ import annotations

import re

FORMAT = 1
MANIFEST = "cube.json"
SIGNATURE = "cube.sig"
MEMORIES = "memories.jsonl"
MODULE = "module.json"
VERSION = "version.json"
END = b"memserve cube sha256 "
END_BYTES = len(END) + 64

ENTRIES_MAX = 50_000
NAME_MAX = 200
DIRECTORY_MAX_BYTES = 16 << 20
MANIFEST_MAX_BYTES = 16 << 20
RECORD_MAX_BYTES = 16 << 20
LINE_MAX_BYTES = 4 << 20
CUBE_MAX_BYTES = 1 << 40
"""Of all entries together, before they are compressed."""
RATIO_MAX = 100
"""How far an entry may be compressed, beyond the first SMALL_BYTES. Texts reach 20."""
SMALL_BYTES = 64 << 20
CHUNK_BYTES = 1 << 20

_NAME = r"[a-z0-9][a-z0-9._-]{0,63}"
_ENTRY = re.compile(
    rf"{re.escape(MEMORIES)}|modules/{_NAME}/(?:{re.escape(MODULE)}|[1-9][0-9]{{0,8}}/[a-z][a-z_]*\.[a-z]+)"
)


def is_entry_name(name: str) -> bool:
    """Whether a cube may have an entry of this name beside its manifest and signature."""
    return len(name) <= NAME_MAX and _ENTRY.fullmatch(name) is not None


def module_entry(module: str) -> str:
    return f"modules/{module}/{MODULE}"


def version_entry(module: str, number: int, file_name: str = VERSION) -> str:
    return f"modules/{module}/{number}/{file_name}"


def is_compressed(name: str) -> bool:
    """Weights do not get smaller."""
    return not name.endswith(".safetensors")
