"""Programs of other people, from the package index, each in an environment of its own."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

from loadtests.harness.figures import report

CACHE = Path(__file__).resolve().parents[2] / ".cache"


def installed(package: str, name: str, *more: str) -> Path:
    """The command of that name. Made at the first call. package: as pip names it, with its version.

    more: other packages that the environment has.
    Raises CalledProcessError.
    """
    folder = CACHE / package.replace("==", "-").replace("*", "x")
    command = folder / "bin" / name
    if not command.exists():
        report(f"installing {package} into {folder}")
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", package, *more]
        subprocess.run(pip, check=True, stdout=sys.stderr)
    return command
