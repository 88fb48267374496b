"""Install LMCache for `loadtests.kv.kv_peers`, into a folder of its own: its requirements contradict the lock
and never reach the environment.

It is installed without them: with Redis on the CPU it needs only what vLLM brings. The rest is for CUDA and
for cloud stores.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from loadtests.harness.wheels import install_wheels

VERSION = "0.5.6"
FOLDER = Path(__file__).resolve().parents[2] / ".cache" / f"lmcache-{VERSION}"
_MODULES = (
    "lmcache.lmcache_redis, lmcache.integration.vllm.lmcache_mp_connector, "
    "lmcache.v1.multiprocess.http_server"
)


def is_installed() -> bool:
    return (FOLDER / f"lmcache-{VERSION}.dist-info").is_dir()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    argparse.ArgumentParser(prog="python -m loadtests.install_lmcache", description=__doc__).parse_args(
        arguments
    )
    shutil.rmtree(FOLDER, ignore_errors=True)
    try:
        install_wheels(FOLDER, [f"lmcache=={VERSION}"])
    except subprocess.CalledProcessError:
        return _failed(
            "pip could not install it: this Python has no wheel of it, or pip's index lacks it or "
            "was not reached"
        )
    quiet = {**os.environ, "PYTHONPATH": str(FOLDER), "LMCACHE_LOG_LEVEL": "ERROR"}
    if subprocess.run([sys.executable, "-c", f"import {_MODULES}"], env=quiet).returncode:
        return _failed("it cannot be imported beside this vLLM")
    print(f"lmcache {VERSION} is in {FOLDER}")
    return 0


def _failed(why: str) -> int:
    shutil.rmtree(FOLDER, ignore_errors=True)
    print(f"lmcache {VERSION} is not installed: {why}; the error is above", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
