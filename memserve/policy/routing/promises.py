"""When refused requests may come again, so that they then find room."""

from __future__ import annotations

from collections import deque

PACE = 1.3
"""Promises are so much further apart than the engine needs: something always goes before."""
KEPT_S = 10.0
"""How late a request may come for its promise."""
EARLY_S = 0.05
PROMISES_MAX = 4096
"""Of one tenant and band."""
LEAST_S, LONGEST_S = 0.1, 600.0
LEAST_LEFT = 0.1
"""A band gets so much of the engine for its promises, whatever the bands above it take."""


class Promises:
    """One after the other, as the engine would compute them.

    What comes again is known by its tenant and band. A tenant that sends something else at that time has used
    the promise for it.
    """

    def __init__(self) -> None:
        self._of: dict[tuple[str, int], deque[tuple[float, float]]] = {}
        self._until_s: dict[int, float] = {}
        self._sweep_at = 64

    def make(self, tenant: str, band: int, own_s: float, now_s: float, ahead_s: float, left: float) -> float:
        """The seconds after which the request may come again.

        own_s: the engine's time for it. ahead_s: what the engine has to do first.
        left: the part of the engine that higher bands leave.
        """
        due_s = max(now_s + ahead_s, self._until_s.get(band, 0.0), now_s + LEAST_S)
        due_s = min(due_s, now_s + LONGEST_S)
        self._until_s[band] = due_s + PACE * own_s / max(left, LEAST_LEFT)
        promises = self._of.setdefault((tenant, band), deque(maxlen=PROMISES_MAX))
        promises.append((due_s, own_s))
        self._forget(now_s)
        return due_s - now_s

    def redeem(self, tenant: str, band: int, own_s: float, now_s: float) -> bool:
        """Whether a promise of the tenant is due for a request of this size. It is then used up."""
        promises = self._of.get((tenant, band))
        if not promises:
            return False
        while promises and promises[0][0] < now_s - KEPT_S:
            promises.popleft()
        for place, (due_s, promised_s) in enumerate(promises):
            if due_s - EARLY_S > now_s:
                return False
            if own_s <= 2 * promised_s:
                del promises[place]
                return True
        return False

    def _forget(self, now_s: float) -> None:
        """Tenants whose last promise is over."""
        if len(self._of) > self._sweep_at:
            self._of = {key: of for key, of in self._of.items() if of and of[-1][0] >= now_s - KEPT_S}
            self._sweep_at = 2 * len(self._of) + 64


class PromisedWorkers:
    """Which worker has promised room to a tenant's request that comes again. A gateway keeps them."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, int], deque[tuple[float, str]]] = {}
        self._sweep_at = 64

    def told(self, tenant: str, band: int, worker: str, due_s: float) -> None:
        """The caller has been told to come again then."""
        of = self._of.setdefault((tenant, band), deque(maxlen=PROMISES_MAX))
        # Nearly in order: workers have their own queues.
        place = len(of)
        while place and of[place - 1][0] > due_s:
            place -= 1
        if len(of) == PROMISES_MAX:
            of.pop()
        of.insert(min(place, len(of)), (due_s, worker))
        if len(self._of) > self._sweep_at:
            self._of = {key: due for key, due in self._of.items() if due[-1][0] >= due_s - KEPT_S}
            self._sweep_at = 2 * len(self._of) + 64

    def take(self, tenant: str, band: int, now_s: float) -> str:
        """The worker whose promise is due, which is then used up. Empty: none."""
        of = self._of.get((tenant, band))
        while of and of[0][0] - EARLY_S <= now_s:
            due_s, worker = of.popleft()
            if due_s >= now_s - KEPT_S:
                return worker
        if of is not None and not of:
            del self._of[tenant, band]
        return ""
