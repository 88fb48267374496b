"""How far a fetch has come: lines at a fixed pace, or a bar of a terminal."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from memserve.processes.supervised import repeating_thread

log = logging.getLogger("memserve.model.fetch")

LINE_S, BAR_S = 5.0, 0.2
Say = Callable[[str], None]
Moved = Callable[[int, int], None]
"""Takes the bytes that have come and all bytes."""


def _log(line: str) -> None:
    log.info("%s", line)


@dataclass(frozen=True, slots=True)
class Telling:
    """How a person is told."""

    say: Say = field(default=_log)
    """Takes one line."""
    moved: Moved | None = None
    """A bar, in place of lines about the progress. None: lines."""


def progress_line(name: str, done: int, total: int, bytes_per_s: float) -> str:
    """total: 0 where the store does not say."""
    share = f"{100 * min(done / total, 1):.0f} % of {size_text(total)}" if total else size_text(done)
    left = f", {(total - done) / bytes_per_s:.0f} s left" if bytes_per_s > 0 and total > done else ""
    return f"fetching {name}: {share}, {size_text(bytes_per_s)}/s{left}"


def size_text(size_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.4g} TB"


@contextlib.contextmanager
def told(name: str, total: int, done: Callable[[], int], telling: Telling) -> Iterator[None]:
    """Tell how far it is while inside. done: how many bytes have come."""
    last_s, last = time.monotonic(), done()

    def look() -> None:
        nonlocal last_s, last
        now_s, now = time.monotonic(), done()
        if telling.moved is not None:
            telling.moved(now, total)
        elif now_s - last_s >= LINE_S:
            telling.say(progress_line(name, now, total, (now - last) / (now_s - last_s)))
            last_s, last = now_s, now

    ending = threading.Event()
    thread = repeating_thread("fetch_progress", look, BAR_S, ending)
    try:
        yield
    finally:
        ending.set()
        thread.join()
