"""Stops distillations that read an erased memory, and forgets what was read of it, at every gateway."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from memserve.errors import RegistryUnavailable
from memserve.gateway.modules.distillation import ModuleDistillation
from memserve.gateway.taught import TaughtFacts
from memserve.registry.gateways import Gateways

log = logging.getLogger("memserve.gateway.erasures")

TOPIC = "erased"


class StoppingJobs:
    """A gateway that does not answer finds out before it publishes (`KeptErasures.erased_since`)."""

    def __init__(self, distillation: ModuleDistillation, taught: TaughtFacts, gateways: Gateways) -> None:
        self._distillation = distillation
        self._taught = taught
        self._gateways = gateways
        gateways.on(TOPIC, self._answer)

    async def stop(self, tenant: str, keys: Sequence[str]) -> int:
        """keys: of the memories. Returns how many jobs were stopped."""
        stopped = self._stop_here(tenant, keys)
        try:
            said = await self._gateways.ask(TOPIC, tenant=tenant, keys=" ".join(keys))
        except RegistryUnavailable as error:
            log.info("other gateways stop by themselves: %s", error)
            return stopped
        return stopped + sum(int(answer) for answer in said.answers)

    def _answer(self, question: dict[str, str]) -> int | None:
        return self._stop_here(question["tenant"], question["keys"].split()) or None

    def _stop_here(self, tenant: str, keys: Sequence[str]) -> int:
        self._taught.forget(tenant)
        return self._distillation.stop_those_of(tenant, keys)
