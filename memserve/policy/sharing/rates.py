"""How much a tenant may ask for in a minute or a second. The clock is an argument."""

from __future__ import annotations

from collections import OrderedDict

from memserve.errors import QuotaExceeded

TENANTS_MAX = 10_000


class Buckets:
    """A token bucket for each tenant. A bucket holds at most `burst` and gains `per_s` a second.

    Only the `TENANTS_MAX` buckets that were used last are kept. A bucket that was not used for a long time is
    full again, so that forgetting it changes nothing.
    """

    def __init__(self, per_s: float, burst: float) -> None:
        self.per_s = per_s
        self.burst = burst
        # Tenant to the level and the time of that level. The least recently used bucket is the first.
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def level(self, tenant: str, now_s: float) -> float:
        """How full the tenant's bucket is. Below 0 when more was spent than the bucket had."""
        level, at_s = self._levels.get(tenant, (self.burst, now_s))
        return min(self.burst, level + max(0.0, now_s - at_s) * self.per_s)

    def spend(self, tenant: str, cost: float, now_s: float) -> float:
        """Take `cost` from the tenant's bucket. Returns the new level, which may be below 0."""
        left = self.level(tenant, now_s) - cost
        self._levels[tenant] = left, now_s
        self._levels.move_to_end(tenant)
        if len(self._levels) > TENANTS_MAX:
            self._levels.popitem(last=False)
        return left


class RateLimit:
    """A number of requests a minute for each tenant. Further requests are refused.

    A tenant that was quiet may send `burst` requests at once.
    """

    def __init__(self, what: str, per_minute: float, *, burst: float | None = None) -> None:
        """what: the name of the requests in a refusal.

        burst: None for half of a minute's requests.
        """
        self._what = what
        self._per_minute = per_minute
        self._buckets = Buckets(per_minute / 60, max(1.0, per_minute / 2 if burst is None else burst))

    def take(self, tenant: str, now_s: float, cost: float = 1.0) -> None:
        """Raises QuotaExceeded with the time after which there is room again.

        A refused call takes nothing.
        """
        missing = min(cost, self._buckets.burst) - self._buckets.level(tenant, now_s)
        if missing > 0:
            raise QuotaExceeded(
                f"{self._what} a minute of tenant {tenant}",
                int(self._per_minute),
                missing / self._buckets.per_s,
            )
        self._buckets.spend(tenant, cost, now_s)


class Pace:
    """An amount a second for each tenant.

    A call above the amount has to wait. It is refused if the wait would be longer than `patience_s`.
    """

    def __init__(self, what: str, per_s: float, *, burst: float, patience_s: float) -> None:
        """what: the name of the amount in a refusal."""
        self._what = what
        self._patience_s = patience_s
        self._buckets = Buckets(per_s, burst)

    def delay_s(self, tenant: str, now_s: float, cost: float = 1.0) -> float:
        """Take the next place in the tenant's queue. Returns the wait for its turn. 0: no wait.

        Raises QuotaExceeded when the wait is too long. A refused call takes no place.
        """
        per_s = self._buckets.per_s
        delay_s = (cost - self._buckets.level(tenant, now_s)) / per_s
        if delay_s > self._patience_s:
            raise QuotaExceeded(f"{self._what} of tenant {tenant}", per_s, delay_s)
        self._buckets.spend(tenant, cost, now_s)
        return max(0.0, delay_s)
