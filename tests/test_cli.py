"""What the command line does with signals."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from memserve.cli import _stopping


@dataclass
class FakeStack:
    started: bool = True
    stopped: int = 0

    def stop(self) -> None:
        self.stopped += 1


class SignalsItsProcess:
    """Python throws away what a finalizer raises, a signal handler's KeyboardInterrupt too."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def test_a_signal_interrupts_what_runs_and_stops_the_stack_once() -> None:
    stack = FakeStack()
    with _stopping(stack):
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("the signal did not interrupt")
    assert stack.stopped == 1
    signal.raise_signal(signal.SIGTERM)  # while or after stopping: nothing


def test_a_signal_that_meets_a_finalizer_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    lost: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda raised: lost.append(raised.exc_type))
    stack = FakeStack()
    with _stopping(stack) as asked_to_stop:
        assert not asked_to_stop()
        made = SignalsItsProcess()
        del made
        assert lost == [KeyboardInterrupt]
        assert asked_to_stop()
    assert stack.stopped == 1
