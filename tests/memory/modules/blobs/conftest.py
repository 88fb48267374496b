from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from memserve.memory.modules.blobs.store import BlobStore
from tests.memory.modules.blobs.blob_files import OPEN


@pytest.fixture(params=["local", "directory", "memory", "file"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OPEN]:
    """Opens one store from several machines, each named: each has a local root of its own, but where the
    store is local.
    """
    bucket = uuid.uuid4().hex
    url = {
        "local": "",
        "directory": str(tmp_path / "shared"),
        "memory": f"memory://{bucket}/modules",
        "file": f"file://{tmp_path}/shared",
    }[request.param]
    yield lambda machine: BlobStore(url, tmp_path / ("one" if request.param == "local" else machine))
    memory = fsspec.filesystem("memory")
    if memory.exists(f"/{bucket}"):
        memory.rm(f"/{bucket}", recursive=True)
