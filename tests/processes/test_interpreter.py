"""What is open is left out of garbage collection as long as it is served, and not longer."""

from __future__ import annotations

import gc
import weakref

from memserve.processes.interpreter import what_is_open_kept


class Ring:
    """Refers to itself."""

    def __init__(self) -> None:
        self.own = self


def test_what_is_open_is_kept_and_collected_afterwards() -> None:
    before = gc.get_threshold()
    ring = Ring()
    gone = weakref.ref(ring)
    with what_is_open_kept():
        del ring
        gc.collect()
        assert gone() is not None, "it is not looked at"
        assert gc.get_freeze_count() > 0
    gc.collect()
    assert gone() is None
    assert gc.get_threshold() == before
