"""Workers that keep failing are left alone for a while. The clock is an argument.

Source: Nygard, "Release It!" (2007), the circuit breaker.
"""

from __future__ import annotations

from dataclasses import dataclass

FAILURES = 3
"""In a row, until a worker is left alone."""
FIRST_S, LONGEST_S = 1.0, 30.0
WORKERS_MAX = 4096


@dataclass(slots=True)
class _Breaker:
    failures: int = 0
    """In a row."""
    until_s: float = 0.0
    """When one request may try the worker again."""


class Breakers:
    """A worker that has failed FAILURES times in a row gets no request for a second, then one that tries it.

    While the tries fail, the pause doubles, up to half a minute. The first success ends it.
    """

    def __init__(self) -> None:
        self._of: dict[str, _Breaker] = {}

    def open_s(self, worker: str, now_s: float) -> float:
        """For how long the worker is left alone yet. 0: it may be asked."""
        breaker = self._of.get(worker)
        if breaker is None or breaker.failures < FAILURES:
            return 0.0
        return max(breaker.until_s - now_s, 0.0)

    def asked(self, worker: str, now_s: float) -> None:
        """A request goes to the worker. Where it is the one that tries it, the others wait for what comes."""
        breaker = self._of.get(worker)
        if breaker is not None and breaker.failures >= FAILURES:
            breaker.until_s = now_s + _pause_s(breaker.failures)

    def succeeded(self, worker: str) -> None:
        self._of.pop(worker, None)

    def failed(self, worker: str, now_s: float) -> None:
        breaker = self._of.pop(worker, None) or _Breaker()
        breaker.failures += 1
        breaker.until_s = now_s + _pause_s(breaker.failures)
        self._of[worker] = breaker
        if len(self._of) > WORKERS_MAX:
            del self._of[next(iter(self._of))]


def _pause_s(failures: int) -> float:
    return min(FIRST_S * 2.0 ** min(max(failures - FAILURES, 0), 10), LONGEST_S)
