"""Generations of workers. A generation is a child process with a Ray of its own and all workers on it.

One generation serves. A new one takes its place when it is damaged or is to be restarted, while the old one
goes on answering. Ray without its GCS cannot start a worker again, and ends by itself after a while; its
workers answer meanwhile over their own ports.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from memserve.processes.backoff import failures_now, pause_s
from memserve.processes.reaper import start_reaper
from memserve.processes.tether import tethered

log = logging.getLogger("memserve.workers")

GENERATION = "_MEMSERVE_GENERATION"
"""The variable that names the generation in the environment of all of its processes."""
POLL_S = 0.1
READY, DAMAGED = "ready", "damaged"

Command = Callable[[int], list[str]]
"""The command line of a generation, from the file descriptor to which it writes its status."""


@dataclass
class Generation:
    """A generation, as its parent sees it."""

    name: str
    """Unlike that of any other generation on this machine."""
    process: subprocess.Popen[bytes]
    reaper: subprocess.Popen[bytes]
    """Kills what is left of the generation when its standard input is closed."""
    status: int
    """The end of a pipe, from which come the lines `ready`, or `damaged` and what has ended."""
    started_s: float
    """On the monotonic clock."""
    ready_s: float = 0.0
    """On the monotonic clock; 0: not ready yet."""
    damage: str = ""
    """What has ended that the generation can go on without."""
    _unread: bytes = b""

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def read_status(self) -> None:
        """Take in what the generation has reported since the last call."""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self.status, 4096):
                self._unread += chunk
        *lines, self._unread = self._unread.split(b"\n")
        for line in lines:
            word, _, rest = line.decode(errors="replace").partition(" ")
            if word == READY:
                self.ready_s = self.ready_s or time.monotonic()
            elif word == DAMAGED:
                self.damage = rest

    def end(self, grace_s: float) -> None:
        """End all of its processes: ask them first, and kill them after `grace_s`. 0: kill them at once."""
        if grace_s and not self.ended:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(grace_s)
        if not self.ended:
            self.process.kill()
            self.process.wait()
        # The reaper kills what is left, and ends.
        assert self.reaper.stdin is not None
        self.reaper.stdin.close()
        self.reaper.wait()
        os.close(self.status)


def start_generation(name: str, command: Command, environment: Callable[[], dict[str, str]]) -> Generation:
    """Start a child whose processes all end with this thread. Raises OSError.

    name: unlike that of any other on this machine.
    """
    status, reports = os.pipe()
    reaper = None
    try:
        os.set_blocking(status, False)
        # Before the generation: whatever ends this process, nothing of the generation is left.
        reaper = start_reaper(GENERATION, name)
        process = subprocess.Popen(
            tethered(command(reports)),
            env={**environment(), GENERATION: name},
            pass_fds=(reports,),
            # Ctrl-C is for this process, which ends the child in its own way.
            start_new_session=True,
        )
    except OSError:
        os.close(status)
        if reaper is not None and reaper.stdin is not None:
            reaper.stdin.close()
            reaper.wait()
        raise
    finally:
        os.close(reports)
    return Generation(name, process, reaper, status, time.monotonic())


@dataclass(frozen=True, slots=True)
class Rules:
    """How generations of workers are started and ended."""

    command: Command
    environment: Callable[[], dict[str, str]]
    """Of a generation's process. May raise OSError."""
    fits: Callable[[], bool]
    """Whether there is memory for a second generation beside the first."""
    drain: Callable[[str], None]
    """Have the workers of a damaged generation, by its name, finish their answers. Returns when they have."""
    start_within_s: float
    """A generation that is not ready after this time is killed."""
    grace_s: float
    """From SIGTERM to SIGKILL."""


@dataclass
class Generations:
    """Keeps one generation serving.

    Everything runs in one thread, because every child ends with the thread that has started it. Only an old
    generation is ended by a thread of its own.
    """

    rules: Rules
    signals: queue.SimpleQueue[int] = field(default_factory=queue.SimpleQueue)
    serving: Generation | None = None
    successor: Generation | None = None
    _started: int = 0
    _failures: int = 0
    _not_before_s: float = 0.0
    _restart: bool = False
    _leaving: list[threading.Thread] = field(default_factory=list)

    def run(self) -> int:
        """Until SIGINT or SIGTERM comes through `signals`. SIGHUP replaces the workers.

        Returns the exit status: that of the first generation when it ends before it is ready, else 0.
        """
        self.serving = self._start()
        try:
            while True:
                with contextlib.suppress(queue.Empty):
                    if self.signals.get(timeout=POLL_S) != signal.SIGHUP:
                        return 0
                    self._restart = True
                if (
                    self.serving is not None
                    and self.serving.ended
                    and self._started == 1
                    and not self.serving.ready_s
                ):
                    return self.serving.process.returncode or 1
                try:
                    self._step()
                except OSError as error:
                    # The system had no process, no file handle or no memory left. The step is taken again.
                    log.error("workers: %s; trying again", error)
                    self._wait_longer(0.0)
        finally:
            for generation in (self.successor, self.serving):
                if generation is not None:
                    generation.end(self.rules.grace_s)
            for thread in self._leaving:
                thread.join()

    def _step(self) -> None:
        for generation in (self.serving, self.successor):
            if generation is not None:
                generation.read_status()
                if (
                    not generation.ready_s
                    and time.monotonic() - generation.started_s > self.rules.start_within_s
                ):
                    log.error("a generation of workers is not ready after %.0f s", self.rules.start_within_s)
                    generation.process.kill()
                    generation.process.wait()
        if self.successor is not None and self.successor.ended:
            self._lost(self.successor)
            self.successor = None
        if self.serving is not None and self.serving.ended:
            self._lost(self.serving)
            self.serving, self.successor = self.successor, None
        if self.serving is None:
            if time.monotonic() >= self._not_before_s:
                self.serving = self._start()
        elif self.successor is not None:
            if self.successor.ready_s:
                log.info("the new workers are ready; ending the ones before")
                self._leave(self.serving)
                self.serving, self.successor, self._restart = self.successor, None, False
        elif (
            self.serving.ready_s
            and (self.serving.damage or self._restart)
            and time.monotonic() >= self._not_before_s
        ):
            self._replace(self.serving)

    def _replace(self, old: Generation) -> None:
        """Start another generation beside the old one, where there is room for both."""
        if self.rules.fits():
            log.warning("starting new workers beside the present ones: %s", old.damage or "asked to restart")
            self.successor = self._start()
        elif old.damage:
            log.warning(
                "there is no memory for new workers beside the present ones, which are ended first: %s",
                old.damage,
            )
            old.end(0)
            self.serving = None
        else:
            log.warning(
                "there is no memory for new workers beside the present ones: restarting one after the other"
            )
            old.process.send_signal(signal.SIGHUP)
            self._restart = False

    def _start(self) -> Generation:
        self._started += 1
        name = f"{os.getpid()}-{self._started}"
        return start_generation(name, self.rules.command, self.rules.environment)

    def _lost(self, generation: Generation) -> None:
        log.error("a generation of workers ended with %s", generation.process.returncode)
        generation.end(0)
        self._wait_longer(time.monotonic() - generation.ready_s if generation.ready_s else 0.0)

    def _wait_longer(self, lived_s: float) -> None:
        self._failures = failures_now(self._failures, lived_s)
        self._not_before_s = time.monotonic() + pause_s(self._failures)

    def _leave(self, old: Generation) -> None:
        """End a generation in a thread of its own: the answers under way take their time."""

        def leave() -> None:
            try:
                if old.damage:
                    self.rules.drain(old.name)
            finally:
                old.end(0 if old.damage else self.rules.grace_s)

        thread = threading.Thread(target=leave, name=f"ends generation {old.name}")
        thread.start()
        self._leaving = [*(other for other in self._leaving if other.is_alive()), thread]
