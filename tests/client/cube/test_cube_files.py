"""A cube is read to its end and refused with the entry that is at fault: damage anywhere, zip files that are
no cubes, cubes that say one thing and hold another.
"""

from __future__ import annotations

import json
import random
import stat
import struct
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from memserve.client import CubeRefused, UsageError, read_cube
from memserve.client.cube import zip_layout
from memserve.client.cube.layout import END, RECORD_MAX_BYTES, is_entry_name
from memserve.client.cube.signing import new_keys
from memserve.client.cube.values import CubeAlias, CubeEntry, CubeModule
from memserve.client.cube.writing import CubeWriter, manifest_bytes, module_record
from memserve.domain import Alias, AliasChange, ModuleKind, TrafficShare
from tests.client.cube.cubes import exported, version, write_cube

NAMESPACES = {"notes": [f"m{number}" for number in range(40)], "empty": []}
SEED = 20


@pytest.fixture
def cube(tmp_path: Path) -> Path:
    return write_cube(tmp_path / "x.cube", NAMESPACES, versions=[version(1), version(3)])


def refused(file: Path, verify: Path | None = None) -> CubeRefused:
    with pytest.raises(CubeRefused) as error:
        read_cube(file, verify)
    return error.value


def test_what_is_written_is_read_and_only_its_owner_can(cube: Path) -> None:
    read = read_cube(cube)
    assert stat.S_IMODE(cube.stat().st_mode) == 0o600
    assert read.manifest.namespaces == {"notes": 40, "empty": 0} and read.memories == 40
    assert read.versions == (version(1), version(3)) and read.signer == "" and not read.is_verified
    assert read.modules[0].aliases[0].history[0].principal == "me"


def test_equal_content_makes_equal_bytes(cube: Path, tmp_path: Path) -> None:
    other = write_cube(tmp_path / "y.cube", NAMESPACES, versions=[version(1), version(3)])
    assert other.read_bytes() == cube.read_bytes()


def test_a_changed_byte_anywhere_is_found(cube: Path) -> None:
    """Every byte of the ends, and seeded ones of every region between."""
    content = cube.read_bytes()
    draw = random.Random(SEED)
    places = {*range(120), *range(len(content) - 400, len(content)), *draw.sample(range(len(content)), 400)}
    for place in sorted(places):
        changed = bytearray(content)
        changed[place] ^= 1 << draw.randrange(8)
        cube.write_bytes(changed)
        assert refused(cube).field, place


def test_damage_names_its_entry(cube: Path) -> None:
    content = cube.read_bytes()
    with zipfile.ZipFile(cube) as archive:
        entries = archive.infolist()
    for entry in entries:
        changed = bytearray(content)
        begins = (
            entry.header_offset + 30 + len(entry.filename) + (20 if entry.filename == "memories.jsonl" else 0)
        )
        changed[begins + entry.compress_size // 2] ^= 4
        cube.write_bytes(changed)
        assert refused(cube).field.startswith(entry.filename)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_cube_that_is_cut_off_is_refused(cube: Path, share: float) -> None:
    content = cube.read_bytes()
    cube.write_bytes(content[: int(len(content) * share)])
    assert "cut off" in refused(cube).rule


def test_bytes_before_and_behind_are_refused(cube: Path) -> None:
    content = cube.read_bytes()
    for changed in (b"x" + content, content + b"x", content + content):
        cube.write_bytes(changed)
        refused(cube)


def test_a_foreign_zip_file_and_no_zip_file_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("cube.json", "{}")
    (tmp_path / "x.pkl").write_bytes(b"\x80\x04\x95" + bytes(500))
    for name in ("x.zip", "x.pkl"):
        assert "no memserve cube" in refused(tmp_path / name).rule
    with pytest.raises(UsageError, match="cannot be read"):
        read_cube(tmp_path / "nowhere")


def hostile(tmp_path: Path, fill: Callable[[zipfile.ZipFile], object]) -> CubeRefused:
    """A zip file that ends as a cube does."""
    file = tmp_path / "hostile.cube"
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w") as archive:
        warnings.simplefilter("ignore")  # zipfile's own, of names that are there twice
        fill(archive)
        if "cube.json" not in archive.namelist():
            archive.writestr(plain("cube.json"), b"{}")
        archive.comment = END + b"0" * 64
    return refused(file)


def plain(name: str, mode: int = stat.S_IFREG | 0o600) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "modules/../tone/1/x.json",
        "modules/tone/1/../../x.json",
        "modules/tone/01/x.json",
        "modules/tone/1/.hidden",
        "modules\\tone\\1\\x.json",
        "modules/tone/1/model.bin/x",
        "memories.jsonl/",
        "x" * 300,
    ],
)
def test_a_name_that_is_a_path_is_refused(name: str, tmp_path: Path) -> None:
    assert not is_entry_name(name)
    error = hostile(tmp_path, lambda archive: archive.writestr(plain(name), b""))
    assert "no entry of a cube" in error.rule and error.field == name[:200]


def test_links_and_folders_and_double_names_are_refused(tmp_path: Path) -> None:
    for mode in (stat.S_IFLNK | 0o777, stat.S_IFDIR | 0o700, 0o600):
        error = hostile(
            tmp_path, lambda archive, mode=mode: archive.writestr(plain("memories.jsonl", mode), b"x")
        )
        assert error.field == "memories.jsonl" and "plain file" in error.rule

    def twice(archive: zipfile.ZipFile) -> None:
        for _ in range(2):
            archive.writestr(plain("memories.jsonl"), b"x")

    assert "two entries" in hostile(tmp_path, twice).rule


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    def bomb(archive: zipfile.ZipFile) -> None:
        with archive.open(deflated("memories.jsonl"), "w", force_zip64=True) as target:
            for _ in range(200):
                target.write(bytes(1 << 20))

    error = hostile(tmp_path, bomb)
    assert error.field == "memories.jsonl" and "may have" in error.rule


def deflated(name: str) -> zipfile.ZipInfo:
    info = plain(name)
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


def test_entries_that_share_bytes_are_refused(cube: Path) -> None:
    """The bombs of overlapping entries: here two names for one place."""
    content = bytearray(cube.read_bytes())
    with zipfile.ZipFile(cube) as archive:
        first, second = archive.infolist()[:2]
    at = content.rindex(b"PK\x01\x02", 0, content.rindex(second.filename.encode()))
    struct.pack_into("<L", content, at + 42, first.header_offset)
    cube.write_bytes(content)
    assert refused(cube).field == second.filename


def test_other_ways_of_packing_are_refused(tmp_path: Path) -> None:
    info = plain("memories.jsonl")
    info.compress_type = zipfile.ZIP_BZIP2
    assert "packed" in hostile(tmp_path, lambda archive: archive.writestr(info, b"x")).rule


def test_a_directory_that_is_too_large_is_not_read(cube: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zip_layout, "DIRECTORY_MAX_BYTES", 100)
    assert "directory" in refused(cube).rule
    monkeypatch.setattr(zip_layout, "ENTRIES_MAX", 3)
    assert "entries" in refused(cube).rule


def test_a_newer_format_says_so(tmp_path: Path) -> None:
    content = json.dumps({"memserve_cube": 2, "other": []}).encode()
    error = hostile(tmp_path, lambda archive: archive.writestr(plain("cube.json"), content))
    assert error.field == "cube.json" and "format 2" in error.rule and "update memserve" in error.rule


def test_a_manifest_that_speaks_of_what_is_not_there_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.cube"
    ghost = CubeEntry("modules/tone/7/version.json", 1, "0" * 64)
    whole = read_cube(write_cube(file, NAMESPACES, versions=[version()])).manifest
    for changes, entry in (
        ({"entries": (*whole.entries, ghost)}, ghost.name),
        ({"entries": whole.entries[:-1]}, whole.entries[-1].name),
        ({"entries": (replace(whole.entries[0], name="../x"), *whole.entries[1:])}, "cube.json"),
        ({"entries": (replace(whole.entries[0], sha256="0" * 64), *whole.entries[1:])}, "memories.jsonl"),
        ({"namespaces": {"notes": 41, "empty": 0}}, "memories.jsonl"),
        ({"modules": {}}, "modules/tone/module.json"),
        ({"modules": {"tone": (1, 2)}}, "modules/tone/2/version.json"),
    ):
        assert refused(write_cube(file, NAMESPACES, versions=[version()], changes=changes)).field == entry, (
            changes
        )


def test_a_version_that_is_not_what_it_says_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.cube"
    for changes, why in (
        ({"module": "other"}, "is of other@1"),
        ({"probes_digest": ""}, "is not what version.json names"),
        ({"rank": "4"}, "rank must be a whole number"),
        ({"sources": "x"}, "sources must be a list"),
        ({"digest": "x"}, "no sha256"),
        ({"parents": ("cd" * 32, "CD" * 32)}, "no sha256"),
    ):
        wrong = write_cube(file, {}, versions=[replace(version(), **changes)])
        assert why in refused(wrong).rule


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("created_s", "1e999", "no JSON"),
        ("created_s", "1" + "0" * 400, "must be a number"),
        ("created_s", "1e300", "must be seconds"),
        ("created_s", "-1", "must be seconds"),
        ("model", '"\\ud800"', "no JSON"),
        ("namespaces", '{"notes": 1' + "0" * 30 + "}", "of 64 bits"),
        *(("left_out", "[" * deep + "]" * deep, "") for deep in range(940, 1000, 2)),
    ],
)
def test_values_that_no_cube_has_are_refused(field: str, value: str, why: str, tmp_path: Path) -> None:
    """Each is JSON that some reader takes, and that something behind it would choke on."""
    manifest = read_cube(write_cube(tmp_path / "x.cube", NAMESPACES)).manifest
    fields = json.loads(manifest_bytes(manifest))
    fields["manifest"][field] = "@"
    content = json.dumps(fields).replace('"@"', value).encode()
    assert why in hostile(tmp_path, lambda archive: archive.writestr(plain("cube.json"), content)).rule


def test_an_alias_that_shares_nothing_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.cube"
    for weights in ((0.0,), (0.0, 0.0), (-1.0, 1.0), (1e308, 1e308)):
        targets = tuple(TrafficShare(number, weight) for number, weight in enumerate(weights, 1))
        wrong = write_cube(file, {}, versions=[version()], targets=targets)
        assert "weights" in refused(wrong).rule, weights


def test_a_history_that_is_too_long_keeps_its_newest_changes() -> None:
    """An export that could not be read again would be refused as a whole."""
    change = AliasChange(1, (TrafficShare(1, 1.0),), 1.5, "me", "promote", "r" * 1000, False)
    changes = tuple(replace(change, revision=number) for number in range(1, 20_001))
    long = CubeAlias(Alias("live", (TrafficShare(1, 1.0),), 20_000, 1.5), changes)
    record = module_record(CubeModule("tone", ModuleKind.LORA, (long, replace(long, history=changes[:3]))))
    assert len(record) <= RECORD_MAX_BYTES
    [kept, short] = json.loads(record)["aliases"]
    assert kept["history"][-1]["revision"] == 20_000 and len(kept["history"]) >= 5_000
    assert [each["revision"] for each in short["history"]][-1:] == [3]


def test_a_memory_whose_name_is_no_text_is_refused(tmp_path: Path) -> None:
    for namespaces in ({"\ud800": ["a"]}, {"notes": ["\udc00"]}):
        assert refused(write_cube(tmp_path / "x.cube", namespaces)).field.startswith(
            ("memories", "cube.json")
        )


def test_lines_that_are_no_export_are_refused(tmp_path: Path) -> None:
    lines = exported({"notes": ["a", "b"]}).splitlines(keepends=True)
    for changed, why in (
        (lines[1:], "no header"),
        (lines[:-1], "cut off"),
        ([lines[0], lines[1], lines[3]], "does not fit"),
        ([lines[0], lines[2], lines[1], lines[3]], "does not fit"),
        ([*lines, lines[1]], "after the end"),
        ([lines[0], b"{\n", *lines[2:]], "no JSON"),
        ([lines[0], lines[1].replace(b'"notes"', b"[]"), *lines[2:]], "no namespace"),
        ([lines[0], lines[1].replace(b'"a"', b"7"), *lines[2:]], "no namespace"),
        ([lines[0], lines[1].replace(b'"versions"', b'"others"'), *lines[2:]], "is no memory"),
        ([lines[0].replace(b'{"notes": 2}', b"[1]"), *lines[1:]], "no namespace"),
    ):
        writer = CubeWriter(tmp_path / "x.cube")
        writer.add("memories.jsonl", b"".join(changed))
        writer.end()
        manifest = read_cube(write_cube(tmp_path / "y.cube", {})).manifest
        entries = tuple(writer.entries)
        writer.close(replace(manifest, namespaces={"notes": 2}, entries=entries), None)
        writer.put()
        assert why in str(refused(tmp_path / "x.cube"))


def test_signatures(tmp_path: Path, cube: Path) -> None:
    private, public, other = (tmp_path / name for name in ("k", "k.pub", "o.pub"))
    signer = new_keys(private, public)
    new_keys(tmp_path / "o", other)
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    signed = write_cube(tmp_path / "signed.cube", NAMESPACES, sign=private)
    read = read_cube(signed, public)
    assert (read.signer, read.is_verified) == (signer, True)
    assert not read_cube(signed).is_verified
    assert "another key" in refused(signed, other).rule
    assert "not signed" in refused(cube, public).rule
    with pytest.raises(UsageError, match=r"verify: .*no public key"):
        read_cube(signed, private)
    with pytest.raises(UsageError, match=r"sign: .*no private key"):
        write_cube(tmp_path / "z.cube", {}, sign=public)
    with pytest.raises(FileExistsError):
        new_keys(private, public)
    with pytest.raises(FileExistsError):
        new_keys(tmp_path / "half", public)
    assert not (tmp_path / "half").exists() and read_cube(signed, public).is_verified


def test_a_signature_does_not_fit_another_cube(tmp_path: Path) -> None:
    """Whoever writes digests anew cannot sign them."""
    private, public = tmp_path / "k", tmp_path / "k.pub"
    new_keys(private, public)
    signed = write_cube(tmp_path / "a.cube", {"notes": ["a"]}, sign=private)
    with zipfile.ZipFile(signed) as archive:
        signature = archive.read("cube.sig")

    class Stolen:
        def signature(self, manifest: bytes) -> bytes:
            return signature

    writer = CubeWriter(tmp_path / "b.cube")
    writer.close(read_cube(write_cube(tmp_path / "c.cube", {})).manifest, Stolen())  # type: ignore[arg-type]
    writer.put()
    assert read_cube(tmp_path / "b.cube").signer
    assert "does not fit" in refused(tmp_path / "b.cube", public).rule
