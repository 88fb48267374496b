"""Tries a module on a worker: does it change anything?"""

from __future__ import annotations

import logging

from memserve.domain import ModuleKind
from memserve.domain.worker_calls import WorkerFailure, WrongRequest
from memserve.errors import InvalidModule
from memserve.gateway.workers.picking import workers_for
from memserve.gateway.workers.pool import WorkerPool

log = logging.getLogger("memserve.gateway.modules.trial")

TRIAL_TIMEOUT_S = 120.0


class ModuleTrial:
    """Asks the workers, one after the other, until one can say."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool

    async def moves_logits(self, tenant: str, kind: ModuleKind, digest: str) -> bool | None:
        """Whether the module changes the canary prompts' logits on a worker; None where no worker can say.

        Raises InvalidModule when the worker's engine refuses it.
        """
        for worker in workers_for(self._pool, tenant):
            try:
                with worker.calling() as calls:
                    return await calls.try_module(digest, kind, TRIAL_TIMEOUT_S) > 0
            except WrongRequest as error:
                raise InvalidModule("module", f"a worker's engine refuses it: {error.detail}") from None
            except WorkerFailure as error:
                log.warning("worker %s could not try %s: %s", error.worker_id, digest[:12], error.detail)
        return None
