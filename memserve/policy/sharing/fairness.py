"""How tenants share the engines."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping


class Lately:
    """The tenants that sent a request within the last `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        # Tenant to the time of its last request. The least recently seen tenant is the first.
        self._seen_s: OrderedDict[str, float] = OrderedDict()

    def see(self, tenant: str, now_s: float) -> None:
        self._seen_s[tenant] = now_s
        self._seen_s.move_to_end(tenant)
        while next(iter(self._seen_s.values())) < now_s - self._seconds:
            self._seen_s.popitem(last=False)

    @property
    def tenants(self) -> frozenset[str]:
        """The tenants at the time of the last request. No tenant is removed between requests."""
        return frozenset(self._seen_s)

    def others(self, tenant: str) -> bool:
        """Whether another tenant is active."""
        return len(self._seen_s) > (tenant in self._seen_s)


def engine_share(places: int, tenants: int) -> int:
    """How many of the engines' places one tenant may hold: seven eighths when it is alone, else half.

    An engine's step takes longer with every answer in it. If a tenant filled all places, the next tenant
    would get only slow places.
    """
    return places - places // 8 if tenants <= 1 else places // 2


def worker_to_leave(load: Mapping[str, tuple[int, int]]) -> str:
    """Which worker a tenant leaves to the other tenants.

    It is the worker with the fewest requests of the tenant. Of several such workers it is the worker that
    other tenants use most. It stays the same worker for as long as the tenant has requests elsewhere.

    load: by worker id, the requests of the tenant and the requests of all tenants.
    """
    return min(load, key=lambda worker: (load[worker][0], -load[worker][1], worker))
