"""When refused requests may come again, so that they then find room."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar

PACE = 1.3
"""Promises are so much further apart than the engine needs: something always goes before."""
KEPT_S = 10.0
"""How late a request may come for its promise."""
EARLY_S = 0.05
PROMISES_MAX = 4096
"""Of one tenant and band."""
LEAST_S, LONGEST_S = 0.1, 600.0
LEAST_LEFT = 0.1
"""A tenant gets so much of the engine for its promises, whatever the bands above it take."""
MARKED_TOKENS = 512

T = TypeVar("T")


def mark_of(token_ids: Sequence[int]) -> int:
    """What a request is known by when it comes again: its length, and how it ends."""
    return hash((len(token_ids), tuple(token_ids[-MARKED_TOKENS:])))


class _Due(Generic[T]):
    """Times by tenant, band and mark, with something to each. A time that is over is forgotten."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, int], deque[tuple[float, int, T]]] = {}
        self._sweep_at = 64

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    def add(self, tenant: str, band: int, mark: int, due_s: float, what: T, now_s: float) -> None:
        """Of too many of one tenant, the latest are left out."""
        due = self._of.setdefault((tenant, band), deque())
        place = len(due)
        while place and due[place - 1][0] > due_s:  # they come nearly in order
            place -= 1
        due.insert(place, (due_s, mark, what))
        if len(due) > PROMISES_MAX:
            due.pop()
        if len(self._of) > self._sweep_at:
            self._of = {key: due for key, due in self._of.items() if due and due[-1][0] >= now_s - KEPT_S}
            self._sweep_at = 2 * len(self._of) + 64

    def take(self, tenant: str, band: int, mark: int, now_s: float) -> T | None:
        """What is due for the request, which is then used up. None: nothing is."""
        due = self._of.get((tenant, band))
        if due is None:
            return None
        while due and due[0][0] < now_s - KEPT_S:
            due.popleft()
        for place, (due_s, its_mark, what) in enumerate(due):
            if due_s - EARLY_S > now_s:
                return None
            if its_mark == mark:
                del due[place]
                return what
        return None


class Promises:
    """Of one engine: one after the other, as it would compute them."""

    def __init__(self) -> None:
        self._due: _Due[bool] = _Due()
        self._until_s: dict[tuple[str, int], float] = {}
        self._sweep_at = 64

    def make(
        self,
        tenant: str,
        band: int,
        mark: int,
        *,
        own_s: float,
        now_s: float,
        ahead_s: float,
        left: float,
    ) -> float:
        """The seconds after which the request may come again.

        mark: as `mark_of` returns it.
        own_s: the engine's time for it. ahead_s: what the engine has to do first.
        left: the part of the engine that higher bands and other tenants leave.
        """
        due_s = max(now_s + ahead_s, self._until_s.get((tenant, band), 0.0), now_s + LEAST_S)
        due_s = min(due_s, now_s + LONGEST_S)
        self._until_s[tenant, band] = due_s + PACE * own_s / max(left, LEAST_LEFT)
        self._due.add(tenant, band, mark, due_s, True, now_s)
        if len(self._until_s) > self._sweep_at:
            self._until_s = {key: until_s for key, until_s in self._until_s.items() if until_s > now_s}
            self._sweep_at = 2 * len(self._until_s) + 64
        return due_s - now_s

    def redeem(self, tenant: str, band: int, mark: int, now_s: float) -> bool:
        """Whether the request has been promised room for now. The promise is then used up."""
        return self._due.take(tenant, band, mark, now_s) is not None


class PromisedWorkers:
    """Which worker has promised room to a request that comes again. A gateway keeps them."""

    def __init__(self) -> None:
        self._due: _Due[str] = _Due()

    def told(self, tenant: str, band: int, mark: int, worker: str, *, due_s: float, now_s: float) -> None:
        """The caller has been told to come again then."""
        self._due.add(tenant, band, mark, due_s, worker, now_s)

    def take(self, tenant: str, band: int, mark: int, now_s: float) -> str:
        """The worker whose promise is due, which is then used up. Empty: none."""
        return self._due.take(tenant, band, mark, now_s) or ""
