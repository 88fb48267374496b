"""The process that has a Ray cluster run the workers."""

from __future__ import annotations

import subprocess
import sys


def test_ray_is_not_imported_before_its_environment_is_set() -> None:
    # Ray reads RAY_AUTH_MODE when it is imported. Without it a cluster with a token lets nobody in.
    look = "import sys, memserve.worker.fleet.cluster; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", look], check=False).returncode == 0
