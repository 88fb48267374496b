"""Files that are put into a module store, and a registry that refers to them."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

from memserve.memory.modules.blobs.store import BlobStore

DIGEST, OTHER, THIRD = "a" * 64, "b" * 64, "c" * 64
FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": bytes(range(256)) * 5}
SIZE = sum(map(len, FILES.values()))
NOW_S = 2e9  # Later than any file's time.
OPEN = Callable[[str], BlobStore]


class Registry:
    """Which digests are referenced and condemned, with the rules of the real store."""

    def __init__(self, *referenced: str) -> None:
        self.used = set(referenced)
        self.condemned: dict[str, str] = {}
        self.when_condemned: Callable[[str], None] = lambda digest: None

    async def referenced(self, digest: str) -> bool:
        return digest in self.used

    async def block_publishing(self, digest: str, token: str, seconds: float) -> bool:
        if digest in self.used or digest in self.condemned:
            return False
        self.condemned[digest] = token
        self.when_condemned(digest)
        return True

    async def allow_publishing(self, digest: str, token: str) -> None:
        if self.condemned.get(digest) == token:
            del self.condemned[digest]


def folder_of(root: Path, files: dict[str, bytes] = FILES) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (root / name).write_bytes(content)
    return root


def kept(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "blob.json"}


def on_disk(root: Path) -> list[str]:
    return sorted(str(file.relative_to(root)) for file in root.rglob("*") if file.is_file())


def half_put(tmp_path: Path, prefix: str) -> BlobStore:
    """A put that was cut off after its first file."""
    blobs = BlobStore(f"{prefix}{tmp_path / 'shared'}" if prefix != "local" else "", tmp_path / "shared")
    root = tmp_path / "shared" / (f".staging/{uuid.uuid4().hex}" if prefix == "local" else DIGEST)
    folder_of(root, {"1" * 64: b"first"})
    return blobs
