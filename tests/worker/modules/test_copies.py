"""Copies of modules on a worker's disk."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from memserve.memory.modules.blobs.places import MANIFEST_FILE
from memserve.memory.modules.blobs.store import BlobStore
from memserve.worker.modules.copies import LEFTOVER_AGE_S, LocalCopies

DIGESTS = [letter * 64 for letter in "abcdef"]
NOW_S = time.time()
UNUSED_S = 600.0


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    source = tmp_path / "source"
    source.mkdir()
    (source / "weights").write_bytes(b"some weights")
    blobs = BlobStore(str(tmp_path / "store"), tmp_path / "local")
    for digest in DIGESTS:
        blobs.put(digest, source)
    return blobs


def fetched(copies: LocalCopies, digest: str, ago_s: float) -> None:
    """As if it had been used last so long before NOW_S."""
    folder = copies.fetch(digest)
    for file in (*folder.iterdir(), folder):
        os.utime(file, (NOW_S - ago_s, NOW_S - ago_s))


def test_the_least_recently_used_copies_beyond_those_kept_are_dropped(blobs: BlobStore) -> None:
    copies = LocalCopies(blobs, kept=2, unused_s=UNUSED_S)
    for number, digest in enumerate(DIGESTS):
        fetched(copies, digest, ago_s=10 * UNUSED_S - number)
    fetched(copies, DIGESTS[5], ago_s=1)
    assert copies.drop_unused([], NOW_S) == 4
    assert [copies.has(digest) for digest in DIGESTS] == [False, False, False, False, True, True]
    assert copies.fetch(DIGESTS[0]).is_dir()


def test_what_is_held_or_has_been_used_lately_is_not_dropped(blobs: BlobStore) -> None:
    copies = LocalCopies(blobs, kept=0, unused_s=UNUSED_S)
    for digest, ago_s in zip(DIGESTS, (2 * UNUSED_S, 2 * UNUSED_S, UNUSED_S / 2), strict=False):
        fetched(copies, digest, ago_s)
    assert copies.drop_unused([DIGESTS[0]], NOW_S) == 1
    assert [copies.has(digest) for digest in DIGESTS[:3]] == [True, False, True]


def test_another_worker_on_the_same_directory_keeps_what_it_holds(blobs: BlobStore) -> None:
    holding, dropping = LocalCopies(blobs), LocalCopies(blobs, kept=0, unused_s=UNUSED_S)
    fetched(holding, DIGESTS[0], ago_s=2 * UNUSED_S)
    holding.drop_unused([DIGESTS[0]], NOW_S)
    assert dropping.drop_unused([], NOW_S) == 0
    assert holding.has(DIGESTS[0])


def test_a_directory_that_is_the_module_store_loses_nothing(blobs: BlobStore, tmp_path: Path) -> None:
    copies = LocalCopies(BlobStore("", tmp_path / "store"), kept=0, unused_s=0)
    assert copies.drop_unused([], NOW_S) == 0
    assert all(copies.has(digest) for digest in DIGESTS)


def test_leftovers_of_a_worker_that_was_killed_are_swept(blobs: BlobStore, tmp_path: Path) -> None:
    copies = LocalCopies(blobs)
    for name, age_s in (("old", LEFTOVER_AGE_S + 1), ("young", 0.0)):
        staged = tmp_path / "local" / ".staging" / name
        staged.mkdir(parents=True)
        (staged / "weights").write_bytes(b"half")
        for file in (staged / "weights", staged):
            os.utime(file, (NOW_S - age_s, NOW_S - age_s))
    fetched(copies, DIGESTS[0], ago_s=LEFTOVER_AGE_S + 1)
    fetched(copies, DIGESTS[1], ago_s=LEFTOVER_AGE_S + 1)
    (tmp_path / "store" / DIGESTS[1] / MANIFEST_FILE).unlink()
    assert copies.sweep_leftovers(NOW_S) == 2
    assert [entry.name for entry in (tmp_path / "local" / ".staging").iterdir()] == ["young"]
    assert [copies.has(digest) for digest in DIGESTS[:2]] == [True, False]
