"""Which versions pass the gate, and the reports that are kept with them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from memserve.domain import GateReport, ModuleVersion, Tenant
from memserve.errors import InvalidModule, NoWorker
from memserve.gateway.modules.gate import Gate
from memserve.gateway.modules.progress import ProgressCallback, Step, with_steps
from memserve.gateway.modules.trial import ModuleTrial
from memserve.memory.modules.memory import ParametricMemory


class Gatekeeper:
    """Tries versions, has their probes asked, and keeps the reports."""

    def __init__(self, memory: ParametricMemory, trial: ModuleTrial, gate: Gate) -> None:
        self._memory = memory
        self._store = memory.store
        self._trial = trial
        self._gate = gate

    async def run(self, tenant: Tenant, name: str, number: int) -> AsyncGenerator[Step | GateReport, None]:
        """Ask the version's probes. The report comes last and is kept with the version.

        Raises ModuleNotFound, OtherBase, InvalidModule, NoWorker.
        """
        await self._store.check_audit(tenant.name)
        version = self._memory.served(await self._memory.version(tenant.name, name, number))

        async def work(on_progress: ProgressCallback) -> GateReport:
            report = await self._report(tenant, version, on_progress)
            await self._keep(tenant, version, report)
            return report

        async with aclosing(with_steps(work)) as events:
            async for event in events:
                yield event

    async def ask_canary(self, tenant: Tenant, version: ModuleVersion) -> GateReport:
        """As `run`, again and again: the report is kept when the verdict changes."""
        report = await self._report(tenant, version, lambda done, total: None)
        known = version.gate
        if known is None or (known.passed, known.probes_digest) != (report.passed, report.probes_digest):
            await self._keep(tenant, version, report)
        return report

    async def _report(
        self, tenant: Tenant, version: ModuleVersion, on_progress: ProgressCallback
    ) -> GateReport:
        if not version.moves_logits:
            moved = await self._trial.moves_logits(tenant.name, version.kind, version.digest)
            if moved is None:
                raise NoWorker("the gate needs one")
            if not moved:
                raise InvalidModule(
                    "module",
                    f"{version.reference} changes nothing: the canary prompts get the same logits with it",
                )
            await self._store.keep_moves_logits(tenant.name, version.module, version.version)
        probes = await self._memory.probes(tenant.name, version)
        return await self._gate.run(tenant, version, probes, on_progress=on_progress)

    async def _keep(self, tenant: Tenant, version: ModuleVersion, report: GateReport) -> None:
        await self._store.keep_gate(tenant.name, tenant.principal, version.module, version.version, report)
