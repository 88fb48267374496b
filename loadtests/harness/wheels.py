"""Installs wheels into a folder of their own, beside the environment and its lock."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def install_wheels(folder: Path, packages: Sequence[str]) -> None:
    """Install these packages without what they require.

    Raises CalledProcessError. pip's error is then on stderr.
    """
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*pip, "--target", str(folder), *packages], check=True, stdout=sys.stderr)
