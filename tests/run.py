"""Every test, in two pytest processes at once: `make test`.

The tests of real engines and of Ray wait for these to start and to answer, and those that install packages
wait for them. All other tests run meanwhile. No more than one process starts engines, because the memory of a
small machine has no room for more.
`python -m pytest` runs the same tests one after the other.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

ENGINES = "engine or stack or installs or ray"
PARTS = {"engines": ENGINES, "others": f"not ({ENGINES})"}
"""The marks of each part's tests, as pytest's option -m takes them."""
STOP_TIMEOUT_S = 60.0
LAST_LINES_TIMEOUT_S = 10.0
FAULT = re.compile(r"(FAILED|ERROR) ")
END = re.compile(r"=* ?(\d+ \w+, )*\d+ passed\b.* in \d")
"""The last line of a pytest that came to its end."""


@dataclass
class Part:
    """One pytest process."""

    name: str
    process: subprocess.Popen[str]
    faults: list[str] = field(default_factory=list)
    end: str = ""
    """Its last line; empty where it did not come to its end."""

    def follow(self, write: Callable[[str], None]) -> None:
        """Hand on its lines, each with the part's name, until it ends."""
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                text = line.rstrip("\n")
                write(f"{self.name:8}| {text}")
                if FAULT.match(text):
                    self.faults.append(text)
                if END.match(text):
                    self.end = text.strip("= ")

    @property
    def passed(self) -> bool:
        """A test that ends the whole process, with whatever status, has failed."""
        return self.process.returncode == 0 and self.end != ""


def stop(parts: Sequence[Part]) -> None:
    """End what still runs, as Ctrl-C does."""
    for part in parts:
        if part.process.poll() is None:
            part.process.send_signal(signal.SIGINT)
    deadline_s = time.monotonic() + STOP_TIMEOUT_S
    for part in parts:
        try:
            part.process.wait(max(0.0, deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            part.process.kill()


def run(commands: Mapping[str, Sequence[str]], write: Callable[[str], None]) -> bool:
    """Run all commands at once to their ends. Returns whether all passed.

    commands: pytest's, by the name of the part.
    """
    parts: list[Part] = []
    try:
        for name, command in commands.items():
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                encoding="utf-8",
                errors="replace",
            )
            parts.append(Part(name, process))
        followers = [threading.Thread(target=part.follow, args=[write], daemon=True) for part in parts]
        for follower in followers:
            follower.start()
        for part, follower in zip(parts, followers, strict=True):
            part.process.wait()
            # What a test has left behind may hold the pipe open.
            follower.join(LAST_LINES_TIMEOUT_S)
    finally:
        stop(parts)
    write("")
    for line in (line for part in parts for line in part.faults):
        write(line)
    for part in parts:
        end = part.end or "pytest did not come to its end"
        write(f"{part.name:8}: {end}, exit status {part.process.returncode}")
    return all(part.passed for part in parts)


def main() -> None:
    """Options are handed on to both."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Unbuffered: each line comes when it is written.
    pytest = [sys.executable, "-u", "-m", "pytest"]
    commands = {name: [*pytest, "-m", marks, *sys.argv[1:]] for name, marks in PARTS.items()}
    passed = run(commands, lambda line: print(line, flush=True))
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
