"""Consolidations in the registry: the newest of each namespace, each with its event in the audit."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from memserve.domain.consolidating import (
    Consolidation,
    ConsolidationPlan,
    ConsolidationProbes,
    ConsolidationState,
    LeftAlone,
    Merge,
    MergedMemory,
    MergeKind,
)
from memserve.memory.modules.registry.scripts import RegistryScripts
from memserve.records import known_fields, reading


class ConsolidationRecords(RegistryScripts):
    """The consolidations of every tenant."""

    async def keep_consolidation(
        self,
        tenant: str,
        principal: str,
        consolidation: Consolidation,
        expected: ConsolidationState | None = None,
    ) -> bool:
        """Keep a consolidation in its state, and tell the audit.

        expected: the state that it has had. None: it is new, and takes the place of the namespace's last one.
        Returns False, and changes nothing, where it has another state or another one has come. Raises
        AuditFull.
        """
        plan, probes = consolidation.plan, consolidation.probes
        told = {
            "merges": len(plan.merges),
            "sources": sum(len(merge.sources) for merge in plan.merges),
            "left_alone": len(plan.left_alone),
            "found": [probes.found_before, probes.found_after],
            "right": [probes.right_before, probes.right_after],
            "reason": consolidation.reason,
        }
        [kept] = await self._change(
            "keep_consolidation",
            tenant=tenant,
            principal=principal,
            namespace=plan.namespace,
            id=consolidation.consolidation_id,
            state=str(consolidation.state),
            body=json.dumps({"plan": asdict(plan), "probes": asdict(probes), "reason": consolidation.reason}),
            told=json.dumps(told),
            expected=str(expected or ""),
        )
        return bool(kept)

    async def forget_consolidations(self, tenant: str, memories: Iterable[tuple[str, str]]) -> int:
        """Have those go that have a text of one of these memories, in whatever state they are.

        memories: by namespace and id; an empty id stands for the whole namespace. Returns how many went.
        """
        erased = set(memories)
        forgotten = 0
        for known in await self.consolidations(tenant):
            namespace = known.plan.namespace
            if (namespace, "") in erased or not erased.isdisjoint(
                (namespace, memory_id) for memory_id in known.plan.memory_ids
            ):
                forgotten += int(
                    await self._look(
                        "forget_consolidation", tenant=tenant, namespace=namespace, id=known.consolidation_id
                    )
                )
        return forgotten

    async def consolidations(self, tenant: str, namespace: str = "") -> list[Consolidation]:
        """The newest of each namespace, or of one, the newest first. After seven days they are gone."""
        flat = await self._look("consolidations", tenant=tenant, namespace=namespace)
        found = self._reader.read(flat[1::2], read_consolidation)
        return sorted(found, key=lambda each: each.at_s, reverse=True)


def read_consolidation(text: str) -> Consolidation:
    """Raises UnreadableRecord."""
    with reading("Consolidation"):
        record = json.loads(text)
        body = json.loads(record["body"])
        return Consolidation(
            str(record["id"]),
            ConsolidationState(record["state"]),
            str(record["principal"]),
            float(record["at_s"]),
            _plan(body["plan"]),
            ConsolidationProbes(**known_fields(ConsolidationProbes, body["probes"])),
            str(body["reason"]),
        )


def _plan(record: dict[str, Any]) -> ConsolidationPlan:
    fields = known_fields(ConsolidationPlan, record)
    fields["merges"] = tuple(map(_merge, fields["merges"]))
    left: list[dict[str, Any]] = fields["left_alone"]
    fields["left_alone"] = tuple(LeftAlone(**known_fields(LeftAlone, each)) for each in left)
    return ConsolidationPlan(**fields)


def _merge(record: dict[str, Any]) -> Merge:
    fields = known_fields(Merge, record)
    sources: list[dict[str, Any]] = fields["sources"]
    fields["sources"] = tuple(MergedMemory(**known_fields(MergedMemory, each)) for each in sources)
    return Merge(**(fields | {"kind": MergeKind(fields["kind"])}))
