"""A real `memserve up`: a process with its own directory."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from memserve.client import CallFailed, Client, wait_until_ready
from memserve.processes.ports import taken_ports

START_TIMEOUT_S = 300.0
LOOK_S = 0.25
LOG_SHOWN_BYTES = 4000


class Up:
    """A `memserve up` on a directory."""

    def __init__(self, data: Path, model: Path | str, workers: int, flags: Sequence[str] = ()) -> None:
        # A benchmark that is ended by a signal leaves no memserve behind.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        self.data = data
        self.workers = workers
        self.log = data.with_suffix(".log")
        command = [
            sys.executable,
            "-m",
            "memserve",
            "up",
            "--data-dir",
            str(data),
            "--model",
            str(model),
            "--workers",
            str(workers),
            *flags,
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--port", "0", "--http-port", "0", "--metrics-port", "0"],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    @property
    def address(self) -> str:
        """Host and port of the gateway. Raises RuntimeError while there is no port."""
        ports = taken_ports(self.data, self.process.pid)
        if ports is None:
            raise RuntimeError(f"memserve up has no port: {self.said()}")
        return f"127.0.0.1:{ports['port']}"

    def said(self) -> str:
        """The end of the process's output."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-LOG_SHOWN_BYTES:]

    def wait_until_ready(self) -> None:
        """Wait until all workers are ready. Raises RuntimeError."""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while taken_ports(self.data, self.process.pid) is None or not wait_until_ready(
            self.address, 1.0, workers=self.workers
        ):
            if self.process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"memserve up did not start: {self.said()}")
            time.sleep(LOOK_S)

    def ready_workers(self) -> frozenset[str]:
        """The ids of the ready workers. Empty when the gateway does not answer."""
        with Client(self.address, timeout_s=2.0) as client:
            try:
                return frozenset(
                    worker.worker_id for worker in client.status(workers_only=True).workers if worker.ready
                )
            except CallFailed:
                return frozenset()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


def is_engine(process: psutil.Process) -> bool:
    """Whether the process is vLLM's engine.

    The engine sets its own process name. In about one of some hundred starts it keeps the name of a process
    that was just spawned.
    """
    return "EngineCore" in process.name() or "spawn_main" in " ".join(process.cmdline())
