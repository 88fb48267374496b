"""A blob is in the store whole or not at all, comes back as it was put, and stays for as long as anything
refers to it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from memserve.errors import BlobDamaged, BlobStoreUnavailable, InvalidModule, ModuleNotFound, StartupError
from memserve.memory.modules.blobs.places import Directory
from memserve.memory.modules.blobs.store import BlobStore
from tests.memory.modules.blobs.blob_files import (
    DIGEST,
    FILES,
    NOW_S,
    OPEN,
    SIZE,
    folder_of,
    half_put,
    kept,
    on_disk,
)


def test_what_is_put_comes_back_on_another_machine(open_store: OPEN, tmp_path: Path) -> None:
    assert open_store("gateway").put(DIGEST, folder_of(tmp_path / "upload")) == SIZE
    worker = open_store("worker")
    assert worker.exists(DIGEST)
    assert kept(worker.local(DIGEST)) == FILES
    assert worker.has_local(DIGEST)
    assert worker.local(DIGEST) == worker.local(DIGEST)
    assert [digest for digest, _ in worker.digests(NOW_S)] == [DIGEST]


def test_canonical_bytes_replace_the_uploaded_and_the_rest_stays_out(
    open_store: OPEN, tmp_path: Path
) -> None:
    upload = folder_of(tmp_path / "upload", {**FILES, "probes.json": b"[]"})
    open_store("gateway").put(
        DIGEST, upload, rewritten={"adapter_config.json": b'{"r": 1}'}, without=["probes.json"]
    )
    assert kept(open_store("worker").local(DIGEST)) == {**FILES, "adapter_config.json": b'{"r": 1}'}
    assert kept(upload) == {**FILES, "probes.json": b"[]"}


def test_what_is_put_again_stays_as_it_was_first(open_store: OPEN, tmp_path: Path) -> None:
    blobs = open_store("gateway")
    blobs.put(DIGEST, folder_of(tmp_path / "upload"))
    assert (
        blobs.put(DIGEST, folder_of(tmp_path / "other form", {**FILES, "adapter_config.json": b"{ }"}))
        == SIZE
    )
    assert kept(open_store("worker").local(DIGEST)) == FILES


def test_what_was_never_put_is_not_found(open_store: OPEN) -> None:
    blobs = open_store("worker")
    with pytest.raises(ModuleNotFound):
        blobs.local(DIGEST)
    with pytest.raises(ModuleNotFound):
        blobs.probes(DIGEST)
    assert not blobs.exists(DIGEST)
    assert not blobs.has_local(DIGEST)
    assert list(blobs.digests(NOW_S)) == []
    blobs.delete(DIGEST)


def test_a_deleted_blob_is_gone(open_store: OPEN, tmp_path: Path) -> None:
    blobs = open_store("gateway")
    blobs.put(DIGEST, folder_of(tmp_path / "upload"))
    blobs.local(DIGEST)
    blobs.delete(DIGEST)
    assert not blobs.exists(DIGEST)
    assert not blobs.has_local(DIGEST)
    with pytest.raises(ModuleNotFound):
        blobs.local(DIGEST)


def test_a_local_copy_can_be_forgotten_but_not_the_only_one(open_store: OPEN, tmp_path: Path) -> None:
    blobs = open_store("worker")
    blobs.put(DIGEST, folder_of(tmp_path / "upload"))
    blobs.local(DIGEST)
    is_copy = blobs.forget_local(DIGEST)
    assert blobs.has_local(DIGEST) is not is_copy
    assert kept(blobs.local(DIGEST)) == FILES


@pytest.mark.parametrize(
    "digest", ["", "..", "../" + "a" * 61, "A" * 64, "a" * 63, "a" * 64 + "\n", "/etc/passwd"]
)
def test_nothing_but_a_digest_becomes_part_of_a_path(open_store: OPEN, tmp_path: Path, digest: str) -> None:
    blobs = open_store("gateway")
    uses: list[Callable[[], object]] = [
        lambda: blobs.put(digest, folder_of(tmp_path / "upload")),
        lambda: blobs.local(digest),
        lambda: blobs.exists(digest),
        lambda: blobs.has_local(digest),
        lambda: blobs.forget_local(digest),
        lambda: blobs.delete(digest),
        lambda: blobs.probes(digest),
        lambda: blobs.delete_probes(digest),
    ]
    for use in uses:
        with pytest.raises(ValueError, match="not a digest"):
            use()


@pytest.mark.parametrize("name", ["blob.json", ".hidden", "a link", "a folder"])
def test_what_is_no_plain_file_is_not_put(open_store: OPEN, tmp_path: Path, name: str) -> None:
    upload = folder_of(tmp_path / "upload")
    match name:
        case "a link":
            (upload / "link").symlink_to("/etc/passwd")
        case "a folder":
            (upload / "folder").mkdir()
        case _:
            (upload / name).write_bytes(b"x")
    blobs = open_store("gateway")
    with pytest.raises(ValueError, match="not a plain file"):
        blobs.put(DIGEST, upload)
    assert not blobs.exists(DIGEST)


def test_probes_are_kept_under_the_digest_of_their_bytes(open_store: OPEN) -> None:
    digest = open_store("gateway").put_probes(b'["what?"]')
    blobs = open_store("worker")
    assert blobs.probes(digest) == b'["what?"]'
    assert [found for found, _ in blobs.probe_digests(NOW_S)] == [digest]
    assert list(blobs.digests(NOW_S)) == []
    blobs.delete_probes(digest)
    assert list(blobs.probe_digests(NOW_S)) == []


def remote_file(tmp_path: Path, content: bytes) -> Path:
    """The object in the shared directory that has this content."""
    return next(file for file in (tmp_path / "shared" / DIGEST).iterdir() if file.read_bytes() == content)


@pytest.mark.parametrize("prefix", ["", "file://"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "list"])
def test_a_damaged_blob_is_never_handed_out_and_putting_it_again_mends_it(
    tmp_path: Path, prefix: str, damage: str
) -> None:
    url = f"{prefix}{tmp_path / 'shared'}"
    BlobStore(url, tmp_path / "gateway").put(DIGEST, folder_of(tmp_path / "upload"))
    weights = remote_file(tmp_path, FILES["adapter_model.safetensors"])
    match damage:
        case "flipped":
            weights.write_bytes(weights.read_bytes()[::-1])
        case "cut":
            weights.write_bytes(weights.read_bytes()[:-1])
        case "gone":
            weights.unlink()
        case "list":
            (weights.parent / "blob.json").write_text(
                json.dumps({"files": {"../evil": {"size_bytes": 1, "sha256": DIGEST}}}), encoding="utf-8"
            )
    worker = BlobStore(url, tmp_path / "worker")
    with pytest.raises(BlobDamaged):
        worker.local(DIGEST)
    assert not worker.has_local(DIGEST)
    assert on_disk(tmp_path / "worker") == []
    worker.put(DIGEST, folder_of(tmp_path / "upload"))
    assert kept(worker.local(DIGEST)) == FILES


def test_a_damaged_local_copy_is_fetched_again(tmp_path: Path) -> None:
    blobs = BlobStore(str(tmp_path / "shared"), tmp_path / "worker")
    blobs.put(DIGEST, folder_of(tmp_path / "upload"))
    (blobs.local(DIGEST) / "adapter_model.safetensors").write_bytes(b"cut")
    assert not blobs.has_local(DIGEST)
    assert kept(blobs.local(DIGEST)) == FILES


def test_a_damaged_blob_of_a_local_store_is_said_to_be(tmp_path: Path) -> None:
    blobs = BlobStore("", tmp_path / "root")
    blobs.put(DIGEST, folder_of(tmp_path / "upload"))
    (blobs.local(DIGEST) / "adapter_model.safetensors").unlink()
    with pytest.raises(BlobDamaged):
        blobs.local(DIGEST)


@pytest.mark.parametrize("store", ["", "shared"])
def test_putting_again_mends_what_lies_here_with_other_bytes(tmp_path: Path, store: str) -> None:
    blobs = BlobStore(store and str(tmp_path / store), tmp_path / "root")
    blobs.put(DIGEST, folder_of(tmp_path / "upload"))
    probes = blobs.put_probes(b"[1]")
    blobs.probes(probes)
    for file in (
        blobs.local(DIGEST) / "adapter_model.safetensors",
        tmp_path / "root" / "probes" / probes / "probes.json",
    ):
        file.write_bytes(file.read_bytes()[::-1])
    with pytest.raises(BlobDamaged):
        blobs.probes(probes)
    blobs.put(DIGEST, tmp_path / "upload")
    blobs.put_probes(b"[1]")
    assert kept(blobs.local(DIGEST)) == FILES
    assert blobs.probes(probes) == b"[1]"


def test_only_what_was_checked_is_put(open_store: OPEN, tmp_path: Path) -> None:
    upload = folder_of(tmp_path / "upload", {**FILES, "probes.json": b"[]"})
    announced = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in upload.iterdir()}
    blobs = open_store("gateway")
    (upload / "adapter_model.safetensors").write_bytes(FILES["adapter_model.safetensors"][::-1])
    with pytest.raises(InvalidModule, match=r"adapter_model\.safetensors: its sha256 is"):
        blobs.put(DIGEST, upload, expected=announced, without=["probes.json"])
    assert not blobs.exists(DIGEST)
    # What is written anew, and what is not kept, is not what was announced.
    folder_of(upload, {**FILES, "adapter_config.json": b"changed", "probes.json": b"changed"})
    blobs.put(
        DIGEST, upload, expected=announced, without=["probes.json"], rewritten={"adapter_config.json": b"{}"}
    )
    assert kept(open_store("worker").local(DIGEST)) == FILES


@pytest.mark.parametrize("prefix", ["local", "file://"])
def test_a_put_that_was_cut_off_can_be_done_again(tmp_path: Path, prefix: str) -> None:
    blobs = half_put(tmp_path, prefix)
    blobs.put(DIGEST, folder_of(tmp_path / "upload"))
    assert kept(blobs.local(DIGEST)) == FILES


def test_a_store_that_fails_is_one_fact_without_its_url(tmp_path: Path) -> None:
    (tmp_path / "shared").write_text("a file where a directory belongs", encoding="utf-8")
    blobs = BlobStore(f"file://{tmp_path}/shared/secret", tmp_path / "gateway")
    with pytest.raises(BlobStoreUnavailable) as refusal:
        blobs.put(DIGEST, folder_of(tmp_path / "upload"))
    assert "secret" not in str(refusal.value)


def test_a_disk_that_refuses_is_one_fact_with_its_reason(tmp_path: Path) -> None:
    place = Directory(tmp_path / ("long" * 100))
    uses: list[Callable[[], object]] = [
        lambda: place.put(DIGEST, {"a": b"x"}, {}),
        place.stage,
        lambda: place.adopt(DIGEST, tmp_path, {}),
        lambda: place.manifest(DIGEST),
        lambda: place.intact(DIGEST),
        lambda: place.sound(DIGEST),
        lambda: place.fetch(DIGEST, tmp_path),
        lambda: place.delete(DIGEST),
        lambda: list(place.digests()),
        lambda: place.changed_s(DIGEST),
        lambda: place.sweep_staging(0.0, NOW_S),
    ]
    for use in uses:
        with pytest.raises(BlobStoreUnavailable) as refusal:
            use()
        assert str(refusal.value) == "the module store does not answer (File name too long); try again"


def test_a_remote_store_tells_the_systems_reason(tmp_path: Path) -> None:
    blobs = BlobStore(f"file://{tmp_path}/{'long' * 100}", tmp_path / "root")
    for use in (
        lambda: blobs.exists(DIGEST),
        lambda: blobs.put_probes(b"[]"),
        lambda: list(blobs.digests(NOW_S)),
    ):
        with pytest.raises(BlobStoreUnavailable, match=r"\(file: File name too long\)"):
            use()


def test_a_url_that_nothing_can_open_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="module_store_url"):
        BlobStore("nosuch://bucket", tmp_path)
