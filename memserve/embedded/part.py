"""One process that is kept running: started, watched, started again with growing pauses, ended.

Each part has its own thread, and no part waits for another. A failure of the first start is raised by
`wait_ready`. Any later failure of a part, such as no disk, no file handles or no log folder, is reported, and
the part is started again.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from memserve.errors import StartupError
from memserve.processes.backoff import failures_now, pause_s

POLL_S = 0.1
KILL_TIMEOUT_S = 5.0

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one part is started and ended."""

    name: str
    """The part's name for people, such as "the registry"."""
    spawn: Callable[[], subprocess.Popen[bytes]]
    """Starts the process. Called in the part's thread."""
    is_ready: Callable[[subprocess.Popen[bytes]], bool]
    """Called again and again. A StartupError fails this start. False or any other error: not yet ready."""
    why_ended: Callable[[], str]
    """Returns a line about a process that ended before it was ready."""
    ready_within_s: float = 300.0
    grace_s: float = 15.0
    """From SIGTERM to SIGKILL."""
    before_end: Callable[[], None] = lambda: None
    """Called before SIGTERM."""
    hint: Callable[[], str] = lambda: ""
    """Called after an end. Returns what may have caused it. Empty: nothing known."""


@dataclass
class Part:
    """`begin` starts the part, `wait_ready` waits until it is ready for the first time, `end` ends it for
    good.
    """

    recipe: Recipe
    report: Report
    process: subprocess.Popen[bytes] | None = None
    """The process that runs now or ran last. None before the first start."""
    starts: int = 0
    """How often the part has become ready."""
    _failure: Exception | None = None
    _changed: threading.Event = field(default_factory=threading.Event)
    _ending: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def begin(self) -> None:
        # The child dies with the thread that starts it. So this thread lives until the child has ended.
        self._thread = threading.Thread(
            target=self._keep_running, name=f"keeps {self.recipe.name} running", daemon=True
        )
        self._thread.start()

    def wait_ready(self) -> None:
        """Raises the error of the first start, which is a StartupError or any other."""
        while not self._changed.wait(POLL_S):
            pass
        if self._failure is not None:
            raise self._failure

    def end(self) -> None:
        """End the process, gently first, and the supervision. Safe to call twice, and at any time."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _keep_running(self) -> None:
        failures = 0
        while True:
            ready_s = time.monotonic()
            try:
                self._start()
                ready_s = time.monotonic()
                self.starts += 1
                self._changed.set()
                ended = self._outlasted()
            except Exception as error:
                _kill(self.process)
                if not self.starts:
                    self._failure = error
                    self._changed.set()
                    return
                ended = f"could not be started: {error}"
            if self._ending.is_set():
                break
            failures = failures_now(failures, time.monotonic() - ready_s)
            hint = self.recipe.hint()
            self._say(
                f"{self.recipe.name} {ended}{f' ({hint})' if hint else ''}; starting it again in "
                f"{pause_s(failures):g} s"
            )
            if self._ending.wait(pause_s(failures)):
                break
        self._end_process()

    def _start(self) -> None:
        """Start the process.

        Returns when it is ready, or when the part has to end. Raises whatever a start raises.
        """
        self.process = None
        self.process = process = self.recipe.spawn()
        deadline_s = time.monotonic() + self.recipe.ready_within_s
        while not self._ending.is_set():
            if process.poll() is not None:
                raise StartupError(self.recipe.why_ended())
            try:
                if self.recipe.is_ready(process):
                    return
            except StartupError:
                raise
            except Exception:
                pass  # not yet ready
            if time.monotonic() > deadline_s:
                raise StartupError(
                    f"{self.recipe.name} is not ready after {self.recipe.ready_within_s:.0f} s: "
                    f"{self.recipe.why_ended()}"
                )
            self._ending.wait(POLL_S)

    def _outlasted(self) -> str:
        """Wait until the process has ended, or the part has to end. Returns what happened."""
        assert self.process is not None
        while self.process.poll() is None and not self._ending.wait(POLL_S):
            pass
        return f"ended with {self.process.returncode}"

    def _end_process(self) -> None:
        process = self.process
        if process is None or process.poll() is not None:
            return
        self._say(f"stopping {self.recipe.name}")
        with contextlib.suppress(Exception):
            self.recipe.before_end()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(self.recipe.grace_s)
        except subprocess.TimeoutExpired:
            _kill(process)

    def _say(self, line: str) -> None:
        # A closed terminal, or a full disk under the terminal's log, is no reason to stop.
        with contextlib.suppress(Exception):
            self.report(line)


def _kill(process: subprocess.Popen[bytes] | None) -> None:
    if process is not None and process.poll() is None:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(KILL_TIMEOUT_S)
