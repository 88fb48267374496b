"""How a module of this package is started as a child.

The child finds the package where this process found it, and gets no secret of this process.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import memserve
from memserve.processes.tether import tethered

_PACKAGES = Path(memserve.__file__).parent.parent
_KEPT = ("PATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "TMPDIR")
# Marks of processes (`marks.py`). Whoever ends this process by its mark waits for its children too.
_MARKS = "_MEMSERVE_"


def module_command(module: str, *arguments: str) -> list[str]:
    """The command line of a child that ends with this process, and with the thread that starts it."""
    return tethered([sys.executable, "-P", "-m", module, *arguments])


def module_environment() -> dict[str, str]:
    """What the child needs to start."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if value and (name in _KEPT or name.startswith(_MARKS))
    }
    paths = (str(_PACKAGES), os.environ.get("PYTHONPATH", ""))
    return {**kept, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
