"""How a serving process shares its interpreter between its event loop and its threads."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator

# How long a thread keeps the interpreter. An embedding is about a hundred steps of numpy on a thread. While
# the event loop is busy, each step may wait this long for the interpreter.
SWITCH_INTERVAL_S = 0.0005
# Python's own first two numbers. A full collection stops all threads, and comes a fifth as often.
_COLLECT_AFTER = (700, 10, 50)


def share_interpreter() -> None:
    """For a process that is about to open what it serves."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)


@contextlib.contextmanager
def what_is_open_kept() -> Iterator[None]:
    """Inside, leave everything that is there now out of garbage collection: it stays as long as it is served.

    Libraries and open parts are some 200,000 objects. A full collection of them stops every call for 0.2 s,
    several times a minute while memories are written.
    """
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
