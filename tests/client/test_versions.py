"""The client and the command line work at the lowest and at the newest versions of what they need. Nothing
else is installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The client's own tests, which need no code of a gateway.
TESTS = (
    "conftest.py",
    "stub_gateway.py",
    "examples.py",
    "case.py",
    "cases.py",
    "lineage_cases.py",
    "memory_cases.py",
    "test_arguments.py",
    "test_calls.py",
    "test_command_line.py",
    "test_failures.py",
    "test_unknown.py",
)
NEEDS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
CONFIGURATION = "[pytest]\naddopts = --import-mode=importlib\nfilterwarnings = error\n"


def lowest(need: str) -> str:
    """`name>=1,<3` is `name==1`. Fails for a dependency that is no range."""
    parts = re.fullmatch(r"([a-z-]+)>=([0-9.]+)(,<[0-9.]+)?", need)
    assert parts, f"{need} names no lowest version"
    return f"{parts[1]}=={parts[2]}"


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", *arguments], check=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT))
    [path] = folder.glob("memserve-*.whl")
    return path


@pytest.mark.installs
@pytest.mark.parametrize("versions", ["lowest", "newest"])
def test_the_clients_tests_pass_with_only_the_client_installed(
    versions: str, wheel: Path, tmp_path: Path
) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    needs = [lowest(need) for need in NEEDS] if versions == "lowest" else ["--upgrade", *NEEDS]
    # Python compiles what is imported, which is little of it.
    install = ["--python", python, "install", "--quiet", "--no-compile"]
    pip(*install, "--only-binary", ":all:", "pytest", *needs)
    pip(*install, "--no-deps", str(wheel))
    (tmp_path / "tests" / "client").mkdir(parents=True)
    for name in TESTS:
        shutil.copy(Path(__file__).parent / name, tmp_path / "tests" / "client")
    (tmp_path / "pytest.ini").write_text(CONFIGURATION, encoding="utf-8")
    ended = subprocess.run(
        [python, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "tests"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert " passed" in ended.stdout
    assert "skipped" not in ended.stdout


def test_a_wheel_leaves_out_what_only_the_repository_needs(wheel: Path) -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "zipfile", "--list", str(wheel)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    ).stdout
    assert "memserve/client/_sync/client.py" in listed
    assert "memserve/client/generate.py" not in listed
