"""Distillations in the registry: jobs that outlive their gateway."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from memserve.domain import (
    DistilChoice,
    Distillation,
    DistillationJob,
    DistillationState,
    DistilPlan,
    DistilProgress,
    MemoryLeftOut,
    Recipe,
)
from memserve.domain.kinds import kind_of_name
from memserve.memory.modules.registry.scripts import RegistryScripts
from memserve.records import known_fields, reading

HOLD_S = 10.0
"""How long a gateway that says nothing keeps a job."""
HELD = "held"
BEGUN = DistilProgress("reading", 0, 0)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class KeptDistillation:
    """A job as the registry keeps it."""

    tenant: str
    job: DistillationJob
    asked: Distillation
    plan: DistilPlan | None
    """None: not known yet, or the job has ended."""
    failure: str
    """Of a job that failed: what it raised, as JSON. The registry does not read it."""

    @property
    def is_running(self) -> bool:
        return self.job.state is DistillationState.RUNNING


@dataclass(frozen=True, slots=True)
class HeldJob:
    """Which job a gateway works on."""

    tenant: str
    principal: str
    module: str
    job_id: str
    gateway: str


class DistillationRecords(RegistryScripts):
    """The distillations of every tenant: the newest of each module."""

    async def begin_distillation(self, held: HeldJob, asked: Distillation) -> KeptDistillation:
        """Begin a job that the gateway holds. Where one of the module is under way, that one is returned.

        Raises InvalidField where the tenant has too many under way, and AuditFull.
        """
        [text] = await self._change(
            "begin_distillation",
            tenant=held.tenant,
            principal=held.principal,
            module=held.module,
            job=held.job_id,
            gateway=held.gateway,
            seconds=HOLD_S,
            asked=json.dumps(asdict(asked)),
        )
        return read_distillation(held.tenant, held.module, text)

    async def distillation(self, tenant: str, module: str) -> KeptDistillation | None:
        """The newest one of the module. None: there is none, or it is too long ago."""
        text = await self._look("distillation", tenant=tenant, module=module)
        return read_distillation(tenant, module, text) if text else None

    async def distillations(self, tenant: str) -> list[KeptDistillation]:
        """The newest one of each module, the newest first."""
        flat = await self._look("distillations", tenant=tenant)
        pairs = zip(flat[::2], flat[1::2], strict=True)
        jobs = self._reader.read(pairs, lambda pair: read_distillation(tenant, *pair))
        return sorted(jobs, key=lambda kept: kept.job.begun_s, reverse=True)

    async def forget_plans(self, tenant: str) -> int:
        """Have the plans of jobs go that have ended: their examples have texts of memories.

        Returns how many had one.
        """
        return int(await self._look("forget_plans", tenant=tenant))

    async def hold_distillation(
        self,
        held: HeldJob,
        *,
        seconds: float = HOLD_S,
        plan: DistilPlan | None = None,
        progress: DistilProgress | None = None,
        version: int = 0,
    ) -> str:
        """Go on holding a job, and say how far it is. seconds: 0 lets it go.

        Returns HELD, or for a person why the gateway must not go on.
        """
        return str(
            await self._look(
                "hold_distillation",
                tenant=held.tenant,
                module=held.module,
                job=held.job_id,
                gateway=held.gateway,
                seconds=seconds,
                plan=json.dumps(asdict(plan)) if plan else "",
                progress=json.dumps(asdict(progress)) if progress else "",
                version=version,
            )
        )

    async def take_distillations(self, gateway: str, limit: int) -> list[KeptDistillation]:
        """Hold up to so many jobs, of any tenant, that no gateway holds any more."""
        flat = await self._look("take_distillations", gateway=gateway, seconds=HOLD_S, limit=limit)
        triples = zip(flat[::3], flat[1::3], flat[2::3], strict=True)
        return self._reader.read(triples, lambda triple: read_distillation(*triple))

    async def end_distillation(
        self, held: HeldJob, state: DistillationState, told: dict[str, Any], failure: str = ""
    ) -> bool:
        """End a job, with what the audit is told. False: it was not under way any more.

        failure: JSON, for whoever watches the job.
        """
        [ended] = await self._change(
            "end_distillation",
            tenant=held.tenant,
            principal=held.principal,
            module=held.module,
            job=held.job_id,
            state=str(state),
            told=json.dumps(told),
            failure=failure,
        )
        return bool(ended)

    async def stop_distillation(self, tenant: str, principal: str, module: str) -> KeptDistillation:
        """End the job of the module, whichever gateway holds it. Raises InvalidField where there is none."""
        [text] = await self._change(
            "stop_distillation",
            tenant=tenant,
            principal=principal,
            module=module,
            told=json.dumps({"reason": f"stopped by {principal}" if principal else "stopped"}),
            failure="",
        )
        return read_distillation(tenant, module, text)


def read_distillation(tenant: str, module: str, text: str) -> KeptDistillation:
    """Raises UnreadableRecord."""
    with reading("Distillation"):
        record = json.loads(text)
        asked = _asked(json.loads(record["asked"]))
        told = json.loads(record["told"] or "{}")
        job = DistillationJob(
            job_id=str(record["job"]),
            module=module,
            kind=asked.kind,
            state=DistillationState(record["state"]),
            principal=str(record["principal"]),
            begun_s=float(record["begun_s"]),
            ended_s=float(record["ended_s"] or 0),
            progress=_known(DistilProgress, record["progress"]) if record["progress"] else BEGUN,
            taken_up=int(record["taken_up"]),
            version=int(told.get("version", 0) if record["ended_s"] else record["version"]),
            passed=told.get("passed"),
            promoted_to=str(told.get("promoted_to", "")),
            reason=str(told.get("reason", "")),
            from_reference=asked.from_reference,
        )
        plan = _plan(json.loads(record["plan"])) if record["plan"] else None
        return KeptDistillation(tenant, job, asked, plan, str(record["failure"]))


def _asked(record: dict[str, Any]) -> Distillation:
    fields = known_fields(Distillation, record)
    choice = known_fields(DistilChoice, fields["choice"])
    for name in ("namespaces", "document_ids"):
        choice[name] = tuple(map(str, choice[name]))
    choice["memories"] = tuple((str(namespace), str(each)) for namespace, each in choice["memories"])
    fields |= {
        "choice": DistilChoice(**choice),
        "kind": kind_of_name(fields["kind"]),
        "recipe": Recipe(**known_fields(Recipe, fields["recipe"])),
    }
    return Distillation(**fields)


def _plan(record: dict[str, Any]) -> DistilPlan:
    fields = known_fields(DistilPlan, record)
    left_out: Sequence[dict[str, Any]] = fields["left_out"]
    fields["left_out"] = tuple(MemoryLeftOut(**known_fields(MemoryLeftOut, each)) for each in left_out)
    return DistilPlan(**(fields | {"examples": tuple(map(str, fields["examples"]))}))


def _known(kind: type[T], text: str) -> T:
    return kind(**known_fields(kind, json.loads(text)))
