"""Which licence the list of an image's packages has for a package."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).parents[2] / "deploy" / "docker" / "sbom.py"


@pytest.fixture(scope="module")
def sbom() -> Any:
    spec = importlib.util.spec_from_file_location("sbom", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LONG = "MIT License\n\nPermission is hereby granted"
WITH_TEXT = {"license": {"name": "MIT License", "text": {"content": LONG}}}


@pytest.mark.parametrize(
    ("metadata", "files", "licence"),
    [
        ("License-Expression: MIT", {}, {"expression": "MIT"}),
        ("License: BSD-3-Clause", {}, {"license": {"name": "BSD-3-Clause"}}),
        (
            "License: UNKNOWN\nClassifier: License :: OSI Approved :: MIT License",
            {},
            {"license": {"name": "MIT License"}},
        ),
        ("License-File: LICENSE", {"LICENSE": LONG}, WITH_TEXT),
        (
            "License-File: LICENSE",
            {"licenses/LICENSE": LONG},
            WITH_TEXT,
        ),
        ("Summary: says nothing", {}, None),
    ],
    ids=["expression", "field", "classifier", "file", "file in its folder", "none"],
)
def test_a_package_has_the_licence_that_it_names_or_its_text(
    sbom: Any, tmp_path: Path, metadata: str, files: dict[str, str], licence: dict[str, Any] | None
) -> None:
    folder = tmp_path / "x-1.dist-info"
    (folder / "licenses").mkdir(parents=True)
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.4\nName: x\nVersion: 1\n{metadata}\n", encoding="utf-8"
    )
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    assert sbom.licence_of(importlib.metadata.PathDistribution(folder)) == licence


def test_every_package_of_this_environment_is_listed(sbom: Any) -> None:
    bill = sbom.bill()
    assert bill["bomFormat"] == "CycloneDX"
    listed = {part["purl"].partition("@")[0] for part in bill["components"]}
    assert {"pkg:pypi/grpcio", "pkg:pypi/memserve"} <= listed
