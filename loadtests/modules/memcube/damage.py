"""Damage in each region of a cube, and cubes that must be refused whole."""

from __future__ import annotations

import random
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from memserve.client import CubeRefused, read_cube
from memserve.client.cube.layout import END, END_BYTES
from memserve.client.cube.zip_layout import FILE

REGIONS = (
    "memories",
    "weights",
    "other files of modules",
    "cube.json",
    "cube.sig",
    "headers",
    "directory",
    "end",
)


@dataclass
class Damage:
    """What became of flipped bits."""

    made: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    names_entry: Counter[str] = field(default_factory=Counter)
    missed: list[str] = field(default_factory=list)

    @property
    def flips(self) -> int:
        return self.made.total()

    @property
    def named(self) -> int:
        return self.names_entry.total()

    def of(self, region: str) -> tuple[int, int, int]:
        return self.made[region], self.found[region], self.names_entry[region]


def regions_of(cube: Path) -> dict[str, list[tuple[int, int, str]]]:
    """Region to the spans of the file, each with the entry that stands there."""
    regions: dict[str, list[tuple[int, int, str]]] = {region: [] for region in REGIONS}
    size_bytes = cube.stat().st_size
    with zipfile.ZipFile(cube) as archive:
        entries, directory_at = archive.infolist(), archive.start_dir
    for entry, behind in zip(entries, [*entries[1:], None], strict=True):
        ends = behind.header_offset if behind is not None else directory_at
        begins = ends - entry.compress_size
        regions["headers"].append((entry.header_offset, begins, entry.filename))
        regions[_region(entry.filename)].append((begins, ends, entry.filename))
    end = size_bytes - END_BYTES - 22
    regions["directory"].append((directory_at, end, FILE))
    regions["end"].append((end, size_bytes, FILE))
    return regions


def _region(name: str) -> str:
    if name in ("cube.json", "cube.sig"):
        return name
    if name == "memories.jsonl":
        return "memories"
    return "weights" if name.endswith(".safetensors") else "other files of modules"


def flipped(cube: Path, scratch: Path, flips: int, seed: int) -> Damage:
    """Flip one bit at a time. flips: in each region."""
    draw, damage = random.Random(seed), Damage()
    shutil.copy(cube, scratch)
    with scratch.open("r+b", buffering=0) as stream:
        for region, spans in regions_of(cube).items():
            for _ in range(flips):
                begins, ends, entry = draw.choice([span for span in spans if span[0] < span[1]])
                place, bit = draw.randrange(begins, ends), 1 << draw.randrange(8)
                stream.seek(place)
                before = stream.read(1)[0]
                stream.seek(place)
                stream.write(bytes([before ^ bit]))
                _look(scratch, damage, region, entry, place)
                stream.seek(place)
                stream.write(bytes([before]))
    read_cube(scratch)
    return damage


def _look(scratch: Path, damage: Damage, region: str, entry: str, place: int) -> None:
    damage.made[region] += 1
    try:
        read_cube(scratch)
    except CubeRefused as refused:
        damage.found[region] += 1
        damage.names_entry[region] += refused.field.startswith(entry)
    else:
        damage.missed.append(f"a flipped bit at {place}, in {region} ({entry}), was not found")


def refusals(cube: Path, folder: Path) -> dict[str, str]:
    """Cubes that must not be taken, and why each was refused; "" for one that was taken."""
    content = cube.read_bytes()

    def written(name: str, changed: bytes) -> Path:
        (folder / name).write_bytes(changed)
        return folder / name

    def zipped(name: str, fill: Callable[[zipfile.ZipFile], object]) -> Path:
        with zipfile.ZipFile(folder / name, "w") as archive:
            fill(archive)
            archive.comment = END + b"0" * 64
        return folder / name

    files = {
        "cut off in the middle": written("cut.cube", content[: len(content) // 2]),
        "cut off by one byte": written("cut-1.cube", content[:-1]),
        "with a byte behind it": written("more.cube", content + b"x"),
        "a pickle": written("x.pkl", b"\x80\x04\x95" + bytes(1000)),
        "a newer format": zipped(
            "newer.cube", lambda archive: archive.writestr(_plain("cube.json"), '{"memserve_cube":2}')
        ),
        "a path in a name": zipped("path.cube", _path),
        "a zip bomb": zipped("bomb.cube", _bomb),
    }
    return {what: why_refused(file) for what, file in files.items()}


def why_refused(file: Path, verify: Path | None = None) -> str:
    """Empty: it was taken."""
    try:
        read_cube(file, verify)
    except CubeRefused as refused:
        return str(refused)
    return ""


def _plain(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, 0o100600 << 16
    return info


def _path(archive: zipfile.ZipFile) -> None:
    archive.writestr(_plain("modules/../../x.json"), "{}")
    archive.writestr(_plain("cube.json"), "{}")


def _bomb(archive: zipfile.ZipFile) -> None:
    info = _plain("memories.jsonl")
    info.compress_type = zipfile.ZIP_DEFLATED
    with archive.open(info, "w", force_zip64=True) as target:
        for _ in range(200):
            target.write(bytes(1 << 20))
    archive.writestr(_plain("cube.json"), "{}")
