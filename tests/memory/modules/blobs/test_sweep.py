"""The sweep of a module store: what nobody refers to goes, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from memserve.errors import BlobDamaged, ModuleNotFound
from memserve.memory.modules.blobs.store import BlobStore, sweep
from tests.memory.modules.blobs.blob_files import (
    DIGEST,
    NOW_S,
    OPEN,
    OTHER,
    Registry,
    folder_of,
    half_put,
    on_disk,
)


@pytest.mark.parametrize("prefix", ["local", "file://"])
async def test_a_put_that_was_cut_off_is_no_blob_and_is_swept(tmp_path: Path, prefix: str) -> None:
    blobs = half_put(tmp_path, prefix)
    assert not blobs.exists(DIGEST)
    assert list(blobs.digests(NOW_S)) == []
    with pytest.raises((ModuleNotFound, BlobDamaged)):
        blobs.local(DIGEST)
    await sweep(blobs, Registry(), 60.0, NOW_S)
    assert on_disk(tmp_path / "shared") == []


async def test_the_sweep_removes_what_nobody_refers_to_and_nothing_else(
    open_store: OPEN, tmp_path: Path
) -> None:
    blobs = open_store("gateway")
    for digest in (DIGEST, OTHER):
        blobs.put(digest, folder_of(tmp_path / "upload"))
        blobs.local(digest)
    used, unused = blobs.put_probes(b"[1]"), blobs.put_probes(b"[2]")
    registry = Registry(DIGEST, used)
    found = await sweep(blobs, registry, 60.0, NOW_S)
    assert (found.modules, found.probes) == ((OTHER,), (unused,))
    assert [blobs.exists(digest) for digest in (DIGEST, OTHER)] == [True, False]
    assert not blobs.has_local(OTHER)
    assert [digest for digest, _ in blobs.probe_digests(NOW_S)] == [used]
    assert registry.condemned == {}


async def test_the_sweep_leaves_young_and_condemned_blobs(open_store: OPEN, tmp_path: Path) -> None:
    blobs = open_store("gateway")
    blobs.put(DIGEST, folder_of(tmp_path / "upload"))
    [(_, age_s)] = blobs.digests(NOW_S)
    assert (await sweep(blobs, Registry(), age_s + 60, NOW_S)).modules == ()
    registry = Registry()
    registry.condemned[DIGEST] = "another gateway's token"
    assert (await sweep(blobs, registry, 60.0, NOW_S)).modules == ()
    assert blobs.exists(DIGEST)
    assert registry.condemned == {DIGEST: "another gateway's token"}


async def test_a_blob_that_is_put_while_the_sweep_looks_stays(tmp_path: Path) -> None:
    blobs = BlobStore("", tmp_path / "root")
    upload = folder_of(tmp_path / "upload")
    blobs.put(DIGEST, upload)
    for file in (tmp_path / "root" / DIGEST, *(tmp_path / "root" / DIGEST).iterdir()):
        os.utime(file, (1e9, 1e9))
    [(_, age_s)] = blobs.digests(NOW_S)
    registry = Registry()

    def put_again(digest: str) -> None:
        blobs.put(digest, upload)

    registry.when_condemned = put_again
    assert (await sweep(blobs, registry, age_s - 60, NOW_S)).modules == ()
    assert blobs.exists(DIGEST)


async def test_copies_of_what_the_store_has_lost_are_swept(tmp_path: Path) -> None:
    url = str(tmp_path / "shared")
    gateway, worker = BlobStore(url, tmp_path / "gateway"), BlobStore(url, tmp_path / "worker")
    for digest in (DIGEST, OTHER):
        gateway.put(digest, folder_of(tmp_path / "upload"))
        worker.local(digest)
    gateway.delete(DIGEST)
    assert worker.has_local(DIGEST)
    assert (await sweep(worker, Registry(OTHER), 60.0, NOW_S)).leftovers == 1
    assert [worker.has_local(digest) for digest in (DIGEST, OTHER)] == [False, True]
