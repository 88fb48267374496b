"""Prometheus and promtool, as `make deploy-tools` provides them."""

from __future__ import annotations

import shutil
from pathlib import Path

UNPACKED = Path(__file__).resolve().parents[1] / ".cache" / "debian" / "usr" / "bin"


def program(name: str) -> str:
    """Its path. Fails the test where it is missing: a test that is left out would hide that."""
    found = shutil.which(name) or shutil.which(name, path=str(UNPACKED))
    assert found, f"{name} is missing: `make deploy-tools` fetches it"
    return found
