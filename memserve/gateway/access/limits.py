"""How much of the gateway one tenant may use.

There are limits on its calls under way, its share of the gateway's time, and its changes a minute.
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
        "UnloadModule", "ComposeModule", "DistilModule", "ReleaseAudit",
    }
)  # fmt: skip
# A batch, an import and a document are one change each: the tenant's share paces their items.
MEMORY_CHANGES = frozenset(
    {
        "Remember", "BatchRemember", "RememberDocument", "ImportMemories", "UpdateMemory", "RestoreMemory",
        "SupersedeMemory", "Forget", "ForgetWhere", "EraseMemory", "DeleteNamespace", "ReindexMemories",
        "RecordOutcome", "ConsolidateNamespace", "DecideConsolidation",
    }
)  # fmt: skip
# Streams that last until their caller ends them. Their limit is WATCHES_MAX.
WATCHES = frozenset({"WatchModules", "WatchMemories"})
# Each of these RPCs has the limit of a tenant's answers. `Inflight` counts all of them together.
ANSWERS = frozenset({"Generate", "WarmPrefix"})
WATCHES_MAX = 16
LONG_PLACES = 4
LONG_WAITING = 16
RETRY_AFTER_S = 0.5
# How long a refusal is held back. A refusal costs the gateway as much as a small call, so a caller that tries
# again at once must not get refusals faster than this.
REFUSAL_DELAY_S = 0.2
# Seconds of the gateway's time that a call costs. All costs are measured on a machine with two cores; an RPC
# that does the work of a measured one has its cost.
CALL_COST_S = 0.0016
# The same for RPCs that take longer. `Remember` and `Search` take longest, because they embed a text.
COSTS_S = {
    "Generate": 0.0065, "WarmPrefix": 0.016, "LookupPrefix": 0.0065, "GetStatus": 0.0065,
    "ListNamespaces": 0.0032, "Remember": 0.03, "UpdateMemory": 0.03, "RestoreMemory": 0.03,
    "Forget": 0.008, "SupersedeMemory": 0.008, "EraseMemory": 0.03, "Search": 0.05, "Recall": 0.05,
    "RecordOutcome": 0.03, "ForgetWhere": 0.05, "ListMemories": 0.0065, "FollowLinks": 0.0065,
    "ReadPlaces": 0.0065, "GetMemoryUsage": 0.0032,
}  # fmt: skip
# Seconds of the gateway's time for each MiB that a call receives, or sends of a module.
MIB_COST_S = 0.013
# A tenant that was quiet may use its share of this many seconds at once.
BURST_S = 1.0
# A call that would have to wait longer than this is refused.
CALL_PATIENCE_S = 5.0
# Calls a second without a key, from each address.
STRANGERS_PER_S = 50.0
# A tenant that called within this time is active. Shares are enforced only while another tenant is active.
RECENT_S = 10.0


def half(places: int, tenants: int) -> int:
    """One tenant may hold half of the places, whether or not other tenants are active."""
    return places // 2


class Strangers:
    """Paces calls without a key, for each address.

    Such calls are health, reflection, and calls that are refused because they have no valid key.
    """

    def __init__(self) -> None:
        self._pace = Pace(
            "calls without a key a second", STRANGERS_PER_S, burst=STRANGERS_PER_S, patience_s=CALL_PATIENCE_S
        )

    async def turn(self, peer: str) -> None:
        """Wait while the peer's address calls too quickly. Raises QuotaExceeded when the wait is too long.

        peer: as gRPC names it, address and port.
        """
        address = peer.rpartition(":")[0]
        await asyncio.sleep(self._pace.delay_s(address, asyncio.get_running_loop().time()))


class Limits:
    """The limits of all tenants, in this gateway."""

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
        """Turns at work that asks workers, or reads and writes whole modules. The places are few, so that
        this work cannot push out the answers of other tenants."""

    @contextlib.asynccontextmanager
    async def call(self, rpc: str, tenant: str, received_bytes: int = 0) -> AsyncIterator[None]:
        """Count the call while inside.

        While other tenants are active, a tenant that uses more than its share waits here first.
        Raises QuotaExceeded, after a delay, when a limit is reached.
        """
        try:
            with self._counted(rpc, tenant):
                await self._turn(tenant, COSTS_S.get(rpc, CALL_COST_S), received_bytes)
                now_s = asyncio.get_running_loop().time()
                if rpc in MODULE_CHANGES:
                    self._module_changes.take(tenant, now_s)
                elif rpc in MEMORY_CHANGES:
                    self._memory_changes.take(tenant, now_s)
                yield
        except QuotaExceeded:
            await asyncio.sleep(REFUSAL_DELAY_S)
            raise

    async def received(self, tenant: str, received_bytes: int) -> None:
        """Wait as `call` does, for a further message of a stream. Raises QuotaExceeded."""
        await self._turn(tenant, CALL_COST_S, received_bytes)

    async def sent(self, tenant: str, sent_bytes: int) -> None:
        """Wait as `call` does, before a further message of a stream is sent. Raises QuotaExceeded."""
        await self._turn(tenant, CALL_COST_S, sent_bytes)

    async def again(self, rpc: str, tenant: str) -> None:
        """Wait as `call` does, for a part of a call that takes as long as a call. Raises QuotaExceeded."""
        await self._turn(tenant, COSTS_S.get(rpc, CALL_COST_S), 0)

    async def _turn(self, tenant: str, cost_s: float, moved_bytes: int) -> None:
        now_s = asyncio.get_running_loop().time()
        self._lately.see(tenant, now_s)
        if self._lately.others(tenant):
            await asyncio.sleep(
                self._pace.delay_s(tenant, now_s, cost_s + moved_bytes / (1 << 20) * MIB_COST_S)
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
