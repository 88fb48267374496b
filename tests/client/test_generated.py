"""The blocking client is generated from the asynchronous one, and a check says when it is not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import memserve.client

PACKAGE = Path(memserve.client.__file__).parent


def generate(package: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(package / "generate.py"), *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


def test_the_blocking_client_is_what_the_generator_writes() -> None:
    ended = generate(PACKAGE, "--check")
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_change_to_one_half_alone_is_found(tmp_path: Path) -> None:
    copy = tmp_path / "memserve" / "client"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "memserve" / "__init__.py").touch()
    # The rules that generated code is formatted by.
    shutil.copy(PACKAGE.parents[1] / "pyproject.toml", tmp_path)
    changed = copy / "_sync" / "modules.py"
    changed.write_text(changed.read_text(encoding="utf-8") + "\nPAGE_SIZE = 10\n", encoding="utf-8")
    (copy / "_sync" / "extra.py").write_text("", encoding="utf-8")
    ended = generate(copy, "--check")
    assert ended.returncode == 1
    assert ended.stderr.endswith("run `make client`: extra.py, modules.py\n")


def test_no_word_of_asyncio_is_left_in_the_blocking_client() -> None:
    for path in (PACKAGE / "_sync").glob("*.py"):
        text = path.read_text(encoding="utf-8").replace("_async/", "").replace("`_async`", "")
        assert "async" not in text.lower(), path
        assert "await " not in text, path
