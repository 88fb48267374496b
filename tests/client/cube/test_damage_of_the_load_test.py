"""`loadtests.memcube` looks at every byte of a cube, and sees what is not found."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtests.modules.memcube import damage
from memserve.client.cube.signing import new_keys
from tests.client.cube.cubes import version, write_cube


@pytest.fixture
def cube(tmp_path: Path) -> Path:
    new_keys(tmp_path / "k", tmp_path / "k.pub")
    return write_cube(tmp_path / "x.cube", {"notes": ["a"]}, versions=[version()], sign=tmp_path / "k")


def test_the_regions_are_the_whole_file(cube: Path) -> None:
    spans = sorted(span[:2] for spans in damage.regions_of(cube).values() for span in spans)
    assert [begins for begins, _ in spans] == [0, *(ends for _, ends in spans[:-1])]
    assert spans[-1][1] == cube.stat().st_size


def test_flips_are_found_in_each_region_and_what_is_taken_is_told(
    cube: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = damage.flipped(cube, tmp_path / "y.cube", 2, 1)
    assert found.flips == 16 and found.missed == [] and found.found == found.made
    monkeypatch.setattr(damage, "read_cube", lambda file: None)
    assert len(damage.flipped(cube, tmp_path / "y.cube", 1, 1).missed) == 8


def test_what_must_be_refused_is_refused_for_its_own_reason(cube: Path, tmp_path: Path) -> None:
    why = damage.refusals(cube, tmp_path)
    assert all(why.values())
    for what, reason in (("a newer format", "update memserve"), ("a path in a name", "no entry of a cube")):
        assert reason in why[what]
