"""The module store: what is known of modules, in the registry Redis. The weights are elsewhere."""

from __future__ import annotations

from memserve.memory.modules.registry.aliases import AliasRecords
from memserve.memory.modules.registry.audit import AuditRecords
from memserve.memory.modules.registry.check import ModuleStoreCheck
from memserve.memory.modules.registry.claims import ClaimRecords
from memserve.memory.modules.registry.consolidations import ConsolidationRecords
from memserve.memory.modules.registry.distillations import DistillationRecords
from memserve.memory.modules.registry.preloads import PreloadRecords
from memserve.memory.modules.registry.scripts import RegistryLimits
from memserve.memory.modules.registry.versions import VersionRecords


class ModuleStore(
    VersionRecords,
    AliasRecords,
    PreloadRecords,
    ClaimRecords,
    DistillationRecords,
    ConsolidationRecords,
    AuditRecords,
):
    """All that is kept of modules; the methods are in the files of their noun.

    Changes but rollbacks and what takes a canary out raise AuditFull while the tenant's audit has no room.

    Names, aliases and digests come checked. Every method raises RegistryUnavailable when Redis does not
    answer within a second; whether a change was made is then unknown.
    """

    def __init__(
        self,
        redis_url: str,
        *,
        modules_max: int | None = None,
        versions_max: int | None = None,
        audit_days: int = 0,
        audit_max_bytes: int = 0,
    ) -> None:
        """modules_max: of a tenant. versions_max: of a module. None: any number. audit_days: events of the
        audit that are older go.

        audit_max_bytes: of each tenant's audit. Of the audit's limits, 0 is none.
        """
        super().__init__(redis_url, RegistryLimits(modules_max, versions_max, audit_days, audit_max_bytes))

    async def check_integrity(self) -> list[str]:
        """What in the store contradicts the rest of it: sentences that name the key. Empty: it is sound.

        Reads every module, its histories and the audits, in pages. The store may be in use meanwhile: what is
        said here was so each time that it was read.
        """
        return await ModuleStoreCheck(self._redis).contradictions()
