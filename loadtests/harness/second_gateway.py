"""Another gateway on a running memserve's registry and workers, or on a directory of its own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from memserve.config import Settings, child_environment
from memserve.processes.ports import taken_ports

START_S = 60.0


@dataclass(frozen=True, slots=True)
class SecondGateway:
    """A running gateway. address: host:port."""

    process: subprocess.Popen[bytes]
    address: str
    log: Path

    def processes(self) -> list[psutil.Process]:
        process = psutil.Process(self.process.pid)
        return [process, *process.children(recursive=True)]


@contextlib.contextmanager
def second_gateway(first: Settings, data: Path, **settings: Any) -> Iterator[SecondGateway]:
    """Serving while inside. Raises RuntimeError with its last line when it does not start.

    first: of the running memserve. data: the directory of this one. settings: that differ.
    """
    data.mkdir(mode=0o700, exist_ok=True)
    chosen = first.model_copy(
        update={
            "data_dir": data,
            "port": 0,
            "http_port": 0,
            "metrics_port": 0,
            "module_store_url": str(first.data / "modules"),
            **settings,
        }
    )
    log = data / "gateway.log"
    with log.open("ab") as output:
        environment = child_environment(chosen, data / "settings.json")
        process = subprocess.Popen(
            [sys.executable, "-m", "memserve", "gateway"], env=environment, stdout=output, stderr=output
        )
    try:
        deadline_s = time.monotonic() + START_S
        while "serving on" not in log.read_text(errors="replace", encoding="utf-8"):
            if process.poll() is not None or time.monotonic() > deadline_s:
                lines = log.read_text(errors="replace", encoding="utf-8").strip().splitlines() or [
                    "it said nothing"
                ]
                raise RuntimeError(lines[-1])
            time.sleep(0.1)
        ports = taken_ports(data, process.pid) or {}
        yield SecondGateway(process, f"{chosen.host}:{ports['port']}", log)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
