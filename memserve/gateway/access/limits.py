"""How much of the gateway one tenant may have: calls under way, its share of the gateway's time, changes a
minute.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator

from memserve.config import Settings
from memserve.errors import QuotaExceeded
from memserve.policy.sharing.fairness import Lately
from memserve.policy.sharing.rates import Pace, RateLimit
from memserve.turns import Turns

MODULE_CHANGES = frozenset(
    {
        "PublishModule", "RunGate", "PromoteModule", "RollbackModule", "SetTraffic", "DropAlias",
        "DeleteVersion", "PreloadModule",
        "UnloadModule", "ComposeModule", "ReleaseAudit",
    }
)  # fmt: skip
MEMORY_CHANGES = frozenset({"Remember", "Forget"})
# Streams that wait for something to happen.
WATCHES = frozenset({"WatchModules"})
# These have a limit of their own, which counts them with other answers.
ANSWERS = frozenset({"Generate", "WarmPrefix"})
WATCHES_MAX = 16
LONG_PLACES = 4
LONG_WAITING = 16
RETRY_AFTER_S = 0.5
# A caller that does not wait gets its refusals no faster: to be refused costs the gateway as much as a small
# call.
REFUSAL_DELAY_S = 0.2
# Of the gateway's time, as measured on a machine with two cores: of a call, of what takes more, and of a MiB
# that comes in. A memory and a query are embedded.
CALL_COST_S = 0.0016
COSTS_S = {
    "Generate": 0.0065, "WarmPrefix": 0.016, "LookupPrefix": 0.0065, "GetStatus": 0.0065,
    "ListNamespaces": 0.0032, "Remember": 0.03,
    "Forget": 0.008, "Search": 0.05,
}  # fmt: skip
MIB_COST_S = 0.013
# A tenant that was quiet may take so many seconds' share at once; one that would wait longer than that is
# refused.
BURST_S = 1.0
CALL_PATIENCE_S = 5.0
STRANGERS_PER_S = 50.0
# A tenant that has called within this time counts as one that asks.
RECENT_S = 10.0


def half(places: int, tenants: int) -> int:
    """One tenant may hold half of the places, whoever else asks."""
    return places // 2


class Strangers:
    """Calls without a key: health, reflection, and those that are refused for want of one. Each address has
    its pace.
    """

    def __init__(self) -> None:
        self._pace = Pace(
            "calls without a key a second", STRANGERS_PER_S, burst=STRANGERS_PER_S, patience_s=CALL_PATIENCE_S
        )

    async def turn(self, peer: str) -> None:
        """peer: as gRPC names it, address and port. Waits when it calls too quickly. Raises QuotaExceeded
        when that takes too long.
        """
        address = peer.rpartition(":")[0]
        await asyncio.sleep(self._pace.delay_s(address, asyncio.get_running_loop().time()))


class Limits:
    """The limits of all tenants, in this gateway.

    long: turns at what asks workers, or reads and writes whole modules: it may not push out the answers of
    others.
    """

    def __init__(self, settings: Settings) -> None:
        self._calls_max = settings.max_calls_per_tenant
        self._answers_max = settings.max_inflight_per_tenant
        self._under_way: Counter[tuple[str, str]] = Counter()
        share = settings.gateway_share_per_tenant
        self._pace = Pace(
            "part of the gateway's time", share, burst=share * BURST_S, patience_s=CALL_PATIENCE_S
        )
        self._lately = Lately(RECENT_S)
        self._module_changes = RateLimit("changes of modules", settings.module_changes_per_minute_per_tenant)
        self._memory_changes = RateLimit("changes of memories", settings.memory_changes_per_minute_per_tenant)
        self.long = Turns("long work on modules", LONG_PLACES, share=half, waiting_per_tenant=LONG_WAITING)

    @contextlib.asynccontextmanager
    async def call(self, rpc: str, tenant: str, received_bytes: int = 0) -> AsyncIterator[None]:
        """Hold the call's place. While others call too, a tenant that takes more than its share waits here.
        Raises QuotaExceeded.
        """
        now_s = asyncio.get_running_loop().time()
        try:
            with self._counted(rpc, tenant):
                await self._turn(tenant, COSTS_S.get(rpc, CALL_COST_S), received_bytes)
                if rpc in MODULE_CHANGES:
                    self._module_changes.take(tenant, now_s)
                elif rpc in MEMORY_CHANGES:
                    self._memory_changes.take(tenant, now_s)
                yield
        except QuotaExceeded:
            await asyncio.sleep(REFUSAL_DELAY_S)
            raise

    async def received(self, tenant: str, received_bytes: int) -> None:
        """For a further message of a call's stream: waits as `call` does. Raises QuotaExceeded."""
        await self._turn(tenant, CALL_COST_S, received_bytes)

    async def _turn(self, tenant: str, cost_s: float, received_bytes: int) -> None:
        now_s = asyncio.get_running_loop().time()
        self._lately.see(tenant, now_s)
        if self._lately.others(tenant):
            await asyncio.sleep(
                self._pace.delay_s(tenant, now_s, cost_s + received_bytes / (1 << 20) * MIB_COST_S)
            )

    @contextlib.contextmanager
    def _counted(self, rpc: str, tenant: str) -> Iterator[None]:
        most = WATCHES_MAX if rpc in WATCHES else self._answers_max if rpc in ANSWERS else self._calls_max
        key = tenant, rpc
        if self._under_way[key] >= most:
            raise QuotaExceeded(f"calls of {rpc} under way for tenant {tenant}", most, RETRY_AFTER_S)
        self._under_way[key] += 1
        try:
            yield
        finally:
            self._under_way[key] -= 1
            if not self._under_way[key]:
                del self._under_way[key]
