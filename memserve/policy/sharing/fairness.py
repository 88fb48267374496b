"""How tenants share what the engines can do. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping


class Lately:
    """The tenants that asked for something within the last `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        # The least recently seen first.
        self._seen_s: OrderedDict[str, float] = OrderedDict()

    def see(self, tenant: str, now_s: float) -> None:
        self._seen_s[tenant] = now_s
        self._seen_s.move_to_end(tenant)
        while next(iter(self._seen_s.values())) < now_s - self._seconds:
            self._seen_s.popitem(last=False)

    @property
    def tenants(self) -> frozenset[str]:
        """As of when one was seen last."""
        return frozenset(self._seen_s)

    def others(self, tenant: str) -> bool:
        """Whether there is another than this one."""
        return len(self._seen_s) > (tenant in self._seen_s)


def engine_share(places: int, tenants: int) -> int:
    """How many of the engines' places one tenant may hold: nearly all when it is alone, else half.

    An engine's step takes longer with every answer in it, so that what is left free would be slow.
    """
    return places - places // 8 if tenants <= 1 else places // 2


def worker_to_leave(load: Mapping[str, tuple[int, int]]) -> str:
    """Which worker a tenant leaves to the others: where it has the fewest requests, and of those the one that
    others use most.

    load: by worker, requests of the tenant and of all. It is the same worker for as long as the tenant has
    requests elsewhere.
    """
    return min(load, key=lambda worker: (load[worker][0], -load[worker][1], worker))
