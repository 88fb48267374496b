"""Modules and their versions in the registry: published, read, marked and deleted."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from memserve.domain import Alias, GateReport, Module, ModuleKind, ModuleVersion
from memserve.errors import ModuleNotFound
from memserve.memory.modules.registry.records import read_alias, read_module, read_version
from memserve.memory.modules.registry.scripts import RegistryScripts, flag, optional

# Of a version, what no request needs: kept apart from the rest.
TEXTS = ("recipe", "notes", "sources")


class VersionRecords(RegistryScripts):
    """The versions of every tenant's modules. A version never changes."""

    async def publish(
        self, tenant: str, principal: str, version: ModuleVersion, *, claim: str = ""
    ) -> ModuleVersion:
        """Add a version under the next number, which is never one that a deleted version had; the number of
        `version` does not matter.

        When the module's newest version has the same content, probes and base model, that one is returned and
        nothing changes. claim: the token of the claim on the content and the probes, which ends with this.
        Raises InvalidField for another kind than the module's, QuotaReached, and DigestCondemned, also when
        the claim has run out.
        """
        body = asdict(version)
        del body["version"], body["gate"], body["moves_logits"]
        texts = {name: body.pop(name) for name in TEXTS}
        return read_version(
            await self._change(
                "publish",
                tenant=tenant,
                principal=principal,
                module=version.module,
                version=json.dumps(body),
                texts=json.dumps(texts),
                gate=json.dumps(asdict(version.gate)) if version.gate else "",
                moves_logits=flag(version.moves_logits),
                claim=claim,
                modules_max=optional(self._limits.modules_max),
                versions_max=optional(self._limits.versions_max),
            )
        )

    async def module(self, tenant: str, name: str) -> Module | None:
        """None: no version of it exists."""
        described = await self._look("module", tenant=tenant, module=name)
        return read_module(described) if described else None

    async def modules(
        self, tenant: str, *, after: str = "", limit: int, prefix: str = "", kind: ModuleKind | None = None
    ) -> tuple[list[Module], str]:
        """Up to `limit` modules, by name, from after the name `after`; fewer when they are large.

        Returns them, and the name after which the next page begins: "" when there is none.
        """
        # Bounds of ZRANGEBYLEX. No text has the byte 0xff.
        first = b"(" + after.encode() if after and after >= prefix else b"[" + prefix.encode()
        last = b"[" + prefix.encode() + b"\xff"
        page, more_after = await self._look(
            "modules", tenant=tenant, first=first, last=last, limit=limit, kind=kind or ""
        )
        return self._reader.read(page, read_module), str(more_after)

    async def count(self, tenant: str) -> int:
        """How many modules the tenant has."""
        return int(await self._look("count", tenant=tenant))

    async def version(self, tenant: str, name: str, number: int) -> ModuleVersion | None:
        stored = await self._look("version", tenant=tenant, module=name, number=number)
        return read_version(stored) if stored else None

    async def versions(
        self, tenant: str, name: str, *, before: int | None = None, limit: int
    ) -> tuple[list[ModuleVersion], int]:
        """Up to `limit` versions, newest first, below the number `before`; fewer when they are large.

        Returns them, and the number below which the next page begins: 0 when there is none.
        """
        bound = "+inf" if before is None else f"({before}"
        page, more_below = await self._look("versions", tenant=tenant, module=name, before=bound, limit=limit)
        return self._reader.read(page, read_version), int(more_below or 0)

    async def resolve(
        self, tenant: str, name: str, *, alias: str = "", number: int = 0
    ) -> tuple[Alias | None, dict[int, ModuleVersion]] | None:
        """What a reference means now, in one round trip. Give an alias or a number.

        None: no such module, no such version, or one that is held for its deletion. Else the alias (None: it
        is not set) and the versions that it targets by number, or the version with that number. Versions come
        light, as every request takes them: without sources, recipe, notes and gate, which `version` gives.
        """
        resolved = await self._look("resolve", tenant=tenant, module=name, alias=alias, number=number or "")
        if not resolved:
            return None
        alias_text, stored = resolved
        versions = self._reader.read(stored, read_version)
        return read_alias(alias_text) if alias_text else None, {
            version.version: version for version in versions
        }

    async def keep_gate(
        self, tenant: str, principal: str, name: str, number: int, report: GateReport
    ) -> ModuleVersion:
        """Keep the version's newest gate report. Raises ModuleNotFound."""
        gate = json.dumps(asdict(report))
        return read_version(
            await self._change(
                "keep_gate", tenant=tenant, principal=principal, module=name, number=number, gate=gate
            )
        )

    async def keep_moves_logits(self, tenant: str, name: str, number: int) -> ModuleVersion:
        """Keep that a worker has seen the version move the canary's logits. Raises ModuleNotFound."""
        return read_version(
            await self._change("keep_moves_logits", tenant=tenant, module=name, number=number)
        )

    async def hold_version(self, tenant: str, name: str, number: int, token: str, seconds: float) -> None:
        """Mark a version that nothing uses, so that nothing new can: `resolve` does not give it, no alias and
        no preload takes it.

        For whoever deletes it, while the workers are asked whether a request uses it. It ends by itself; the
        same token prolongs it. Raises ModuleNotFound and VersionInUse.
        """
        await self._change("hold", tenant=tenant, module=name, number=number, token=token, seconds=seconds)

    async def release_version(self, tenant: str, name: str, number: int, token: str) -> None:
        """Take the mark off, where this token's is on it."""
        await self._change("release", tenant=tenant, module=name, number=number, token=token)

    async def other_references(self, tenant: str, name: str, number: int) -> bool:
        """Whether another version of anybody has the same digest. One that is held for its deletion counts as
        gone.

        So that of two deletions at once one finds nothing left, ask while the version is held. Raises
        ModuleNotFound.
        """
        has_others = await self._look("other_references", tenant=tenant, module=name, number=number)
        if has_others is None:
            raise ModuleNotFound(f"{name}@{number}")
        return bool(has_others)

    async def delete_version(
        self, tenant: str, principal: str, name: str, number: int, *, token: str = ""
    ) -> tuple[ModuleVersion, bool, bool]:
        """Returns what was deleted, whether no version of anybody has its digest any more, and whether none
        of this tenant has.

        token: of the mark that must still be on it.
        Raises ModuleNotFound, and VersionInUse while an alias or a preload uses it (that of a worker with a
        lease, or of every worker), or when the mark has run out.
        """
        deleted: tuple[Any, bool, bool] = tuple(
            await self._change(
                "delete", tenant=tenant, principal=principal, module=name, number=number, token=token
            )
        )
        stored, is_unreferenced, is_tenants_last = deleted
        return read_version(stored), is_unreferenced, is_tenants_last
