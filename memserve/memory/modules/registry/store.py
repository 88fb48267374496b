"""The module store: what is known of modules, in the registry Redis. The weights are elsewhere.

The scripts are in `store.lua` and `changes.lua`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from redis.exceptions import NoScriptError

from memserve.domain import (
    Alias,
    AliasChange,
    AuditEvent,
    GateReport,
    Module,
    ModuleKind,
    ModuleVersion,
    TrafficShare,
)
from memserve.errors import (
    AliasConflict,
    AuditFull,
    InvalidField,
    ModuleNotFound,
    NothingToRollBack,
    PicklableError,
    QuotaReached,
    VersionInUse,
)
from memserve.memory.modules.registry.records import (
    CanaryAlias,
    Preload,
    read_alias,
    read_alias_change,
    read_canary,
    read_event,
    read_module,
    read_preload,
    read_version,
)
from memserve.records import LenientReader
from memserve.registry.client import TIMEOUT_S, answering, close_client, registry_client

log = logging.getLogger("memserve.memory.modules.registry.store")

SCRIPT = "".join(
    files("memserve.memory.modules.registry").joinpath(name).read_text(encoding="utf-8")
    for name in ("store.lua", "changes.lua")
)
DIGEST = hashlib.sha1(SCRIPT.encode()).hexdigest()
# Of a version, what no request needs: kept apart from the rest.
TEXTS = ("recipe", "notes", "sources")
# More calls at once wait for one of these, inside their second.
CONNECTIONS = 32
# Each that waits for events holds a connection.
WATCHERS_MAX = 4096
DIGESTS_AT_ONCE = 1000
FIRST_EVENT_ID = "0-0"
_EVENT_ID = re.compile(r"([0-9]{1,20})-([0-9]{1,20})")
_EVENT_PART_MAX = 2**64 - 1


class DigestCondemned(PicklableError):
    """What has this digest is being removed, or may have been: store it again, then publish."""

    def __init__(self, digest: str) -> None:
        super().__init__(f"{digest} is being removed; store it again")
        self.digest = digest


# What a script may answer instead of having changed anything, by the names that it uses.
REFUSALS = {
    error.__name__: error
    for error in (
        AliasConflict,
        AuditFull,
        DigestCondemned,
        InvalidField,
        ModuleNotFound,
        NothingToRollBack,
        QuotaReached,
        VersionInUse,
    )
}


class ModuleStore:
    """Every change is one atomic exchange with Redis, its audit event included. Sent again over a new
    connection it is done once.

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
        self._modules_max = modules_max
        self._versions_max = versions_max
        self._audit_limits = audit_days, audit_max_bytes
        self._redis = registry_client(redis_url)
        self._watching = registry_client(redis_url, max_connections=WATCHERS_MAX)
        self._connections = asyncio.Semaphore(CONNECTIONS)
        self._reader = LenientReader(log)

    async def close(self) -> None:
        """Whoever waits for events is to be cancelled before."""
        await close_client(self._redis)
        await close_client(self._watching)

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
        texts = json.dumps({name: body.pop(name) for name in TEXTS})
        gate = json.dumps(asdict(version.gate)) if version.gate else ""
        quotas = _optional(self._modules_max), _optional(self._versions_max)
        options = texts, gate, _flag(version.moves_logits), claim, *quotas
        return read_version(
            await self._change("publish", tenant, principal, version.module, json.dumps(body), *options)
        )

    async def module(self, tenant: str, name: str) -> Module | None:
        """None: no version of it exists."""
        found = await self._look("module", tenant, name)
        return read_module(found) if found else None

    async def modules(
        self, tenant: str, *, after: str = "", limit: int, prefix: str = "", kind: ModuleKind | None = None
    ) -> tuple[list[Module], str]:
        """Up to `limit` modules, by name, from after the name `after`; fewer when they are large.

        Returns them, and the name after which the next page begins: "" when there is none.
        """
        # Bounds of ZRANGEBYLEX. No text has the byte 0xff.
        first = b"(" + after.encode() if after and after >= prefix else b"[" + prefix.encode()
        last = b"[" + prefix.encode() + b"\xff"
        found, more_after = await self._look("modules", tenant, first, last, limit, kind or "")
        return self._reader.read(found, read_module), str(more_after)

    async def count(self, tenant: str) -> int:
        """How many modules the tenant has."""
        return int(await self._look("count", tenant))

    async def version(self, tenant: str, name: str, number: int) -> ModuleVersion | None:
        found = await self._look("version", tenant, name, number)
        return read_version(found) if found else None

    async def versions(
        self, tenant: str, name: str, *, before: int | None = None, limit: int
    ) -> tuple[list[ModuleVersion], int]:
        """Up to `limit` versions, newest first, below the number `before`; fewer when they are large.

        Returns them, and the number below which the next page begins: 0 when there is none.
        """
        found, more_below = await self._look(
            "versions", tenant, name, "+inf" if before is None else f"({before}", limit
        )
        return self._reader.read(found, read_version), int(more_below or 0)

    async def resolve(
        self, tenant: str, name: str, *, alias: str = "", number: int = 0
    ) -> tuple[Alias | None, dict[int, ModuleVersion]] | None:
        """What a reference means now, in one round trip. Give an alias or a number.

        None: no such module, no such version, or one that is held for its deletion. Else the alias (None: it
        is not set) and the versions that it targets by number, or the version with that number. Versions come
        light, as every request takes them: without sources, recipe, notes and gate, which `version` gives.
        """
        found = await self._look("resolve", tenant, name, alias, number or "")
        if not found:
            return None
        shown, stored = found
        versions = self._reader.read(stored, read_version)
        return read_alias(shown) if shown else None, {version.version: version for version in versions}

    async def set_alias(
        self,
        tenant: str,
        principal: str,
        name: str,
        alias: str,
        targets: Sequence[TrafficShare],
        *,
        action: str,
        reason: str = "",
        forced: bool = False,
        expected_revision: int | None = None,
        ungated_share_max: float | None = None,
    ) -> Alias:
        """Point an alias, when it is at the expected revision (0: not set yet; None: whatever it is at).

        ungated_share_max: the part of the whole, 0 to 1, that versions which have not passed the gate may
        have together; None: any. Raises AliasConflict, InvalidField for more than that part, and
        ModuleNotFound for a target that does not exist or is held for its deletion.
        """
        if not targets:
            raise InvalidField("targets", "must name at least one version")
        shares = json.dumps([{"version": share.version, "weight": float(share.weight)} for share in targets])
        options = action, reason, _flag(forced), _optional(expected_revision), _optional(ungated_share_max)
        [shown] = await self._change("set_alias", tenant, principal, name, alias, shares, *options)
        return read_alias(shown)

    async def rollback(
        self,
        tenant: str,
        principal: str,
        name: str,
        alias: str,
        *,
        action: str = "rollback",
        reason: str = "",
        expected_revision: int | None = None,
        leaving: int | None = None,
    ) -> Alias:
        """Point an alias at the targets that it had before the present ones. Two in a row go two steps back.

        leaving: the version that is the trouble; it must be among the targets, and is not among those gone
        back to. Raises ModuleNotFound, AliasConflict, and NothingToRollBack, also where an earlier target has
        been deleted.
        """
        options = action, reason, _optional(expected_revision), _optional(leaving)
        [shown] = await self._change("rollback", tenant, principal, name, alias, *options)
        return read_alias(shown)

    async def take_out(
        self,
        tenant: str,
        principal: str,
        name: str,
        alias: str,
        version: int,
        *,
        action: str = "canary_rollback",
        reason: str,
        expected_revision: int | None,
    ) -> Alias:
        """Take a version out of an alias; the others keep their weights. Where it is the only one, `rollback`
        with `leaving`.

        A rollback then goes back from what the alias was before the version came to it. Raises as `rollback`.
        """
        options = version, action, reason, _optional(expected_revision)
        [shown] = await self._change("take_out", tenant, principal, name, alias, *options)
        return read_alias(shown)

    async def canaries(self) -> list[CanaryAlias]:
        """The aliases of all tenants that have any. Kept by the changes of aliases themselves."""
        found = await self._look("canaries")
        readable = self._reader.read(zip(found[::2], found[1::2], strict=True), read_canary)
        return sorted(readable, key=lambda canary: (canary.tenant, canary.name, canary.alias))

    async def take_turn(self, canary: CanaryAlias, seconds: float) -> bool:
        """True for one caller in so many seconds: the others need not look at the alias."""
        turn = f"memserve:module:canaries:turn:{json.dumps([canary.tenant, canary.name, canary.alias])}"
        async with answering(), self._connections:
            return bool(await self._redis.set(turn, "", nx=True, px=max(int(seconds * 1000), 1)))

    async def drop_alias(
        self, tenant: str, principal: str, name: str, alias: str, *, expected_revision: int | None = None
    ) -> Alias:
        """Take an alias away. Set again, its revision goes on from there, and nothing goes back to before.

        Returns what it was. Raises AliasConflict, and ModuleNotFound where it does not exist.
        """
        [shown] = await self._change(
            "drop_alias", tenant, principal, name, alias, _optional(expected_revision)
        )
        return read_alias(shown)

    async def history(
        self, tenant: str, name: str, alias: str, *, after: int = 0, limit: int
    ) -> list[AliasChange]:
        """Up to `limit` changes of an alias, oldest first, from after the revision `after`; fewer when they
        are large.

        Where it was dropped, it has no targets.

        Raises ModuleNotFound for a name that never had a version.
        """
        found = await self._look("history", tenant, name, alias, after, limit)
        if found is None:
            raise ModuleNotFound(name)
        return self._reader.read(found, read_alias_change)

    async def keep_gate(
        self, tenant: str, principal: str, name: str, number: int, report: GateReport
    ) -> ModuleVersion:
        """Keep the version's newest gate report. Raises ModuleNotFound."""
        return read_version(
            await self._change("keep_gate", tenant, principal, name, number, json.dumps(asdict(report)))
        )

    async def keep_moves_logits(self, tenant: str, name: str, number: int) -> ModuleVersion:
        """Keep that a worker has seen the version move the canary's logits. Raises ModuleNotFound."""
        return read_version(await self._change("keep_moves_logits", tenant, name, number))

    async def hold_version(self, tenant: str, name: str, number: int, token: str, seconds: float) -> None:
        """Mark a version that nothing uses, so that nothing new can: `resolve` does not give it, no alias and
        no preload takes it.

        For whoever deletes it, while the workers are asked whether a request uses it. It ends by itself; the
        same token prolongs it. Raises ModuleNotFound and VersionInUse.
        """
        await self._change("hold", tenant, name, number, token, seconds)

    async def release_version(self, tenant: str, name: str, number: int, token: str) -> None:
        """Take the mark off, where this token's is on it."""
        await self._change("release", tenant, name, number, token)

    async def other_references(self, tenant: str, name: str, number: int) -> bool:
        """Whether another version of anybody has the same digest. One that is held for its deletion counts as
        gone.

        So that of two deletions at once one finds nothing left, ask while the version is held. Raises
        ModuleNotFound.
        """
        found = await self._look("other_references", tenant, name, number)
        if found is None:
            raise ModuleNotFound(f"{name}@{number}")
        return bool(found)

    async def delete_version(
        self, tenant: str, principal: str, name: str, number: int, *, token: str = ""
    ) -> tuple[ModuleVersion, bool, bool]:
        """Returns what was deleted, whether no version of anybody has its digest any more, and whether none
        of this tenant has.

        token: of the mark that must still be on it.
        Raises ModuleNotFound, and VersionInUse while an alias or a preload uses it (that of a worker with a
        lease, or of every worker), or when the mark has run out.
        """
        stored, unreferenced, tenants_last = await self._change(
            "delete", tenant, principal, name, number, token
        )
        return read_version(stored), unreferenced, tenants_last

    async def preload(self, tenant: str, principal: str, name: str, number: int, worker_id: str = "") -> None:
        """Have a worker (every worker: "") load the version when it starts. Raises ModuleNotFound."""
        await self._change("preload", tenant, principal, name, number, worker_id)

    async def unload(self, tenant: str, principal: str, name: str, number: int, worker_id: str = "") -> None:
        """Take back the preload for this worker; for "", every preload of the version. Without one, only the
        audit tells of it.

        Raises ModuleNotFound.
        """
        await self._change("unload", tenant, principal, name, number, worker_id)

    async def preloads(self) -> list[Preload]:
        """Of all tenants, each once, without those of workers that have no lease; after an hour without one
        they are taken away.
        """
        return sorted(set(self._reader.read(await self._look("preloads"), read_preload)))

    async def referenced(self, digest: str) -> bool:
        """Whether a version of anybody has this digest, of its content or of its probes."""
        return bool(await self._look("referenced", digest))

    async def of_tenant(self, tenant: str, digests: Sequence[str]) -> set[str]:
        """Those of these digests that a version of the tenant has."""
        # Lua puts arguments on a stack of 8,000.
        parts = [
            digests[start : start + DIGESTS_AT_ONCE] for start in range(0, len(digests), DIGESTS_AT_ONCE)
        ]
        return {digest for part in parts for digest in await self._look("of_tenant", tenant, *part)}

    async def claim(self, digests: Sequence[str], token: str, seconds: float) -> None:
        """Keep digests from being condemned for so long: what has them is being stored, to be published then.
        Ends by itself.

        Raises DigestCondemned.
        """
        await self._change("claim", token, seconds, *digests)

    async def unclaim(self, digests: Sequence[str], token: str) -> None:
        """End the claim without having published."""
        await self._change("unclaim", token, *digests)

    async def condemn(self, digest: str, token: str, seconds: float) -> bool:
        """Keep the digest from being published for so long, so that what has it can be removed. Ends by
        itself.

        Returns False where a version references it, a publisher claims it, or another token has condemned it.
        """
        [condemned] = await self._change("condemn", digest, token, seconds)
        return bool(condemned)

    async def absolve(self, digest: str, token: str) -> None:
        """Let the digest be published again, where this token condemned it."""
        await self._change("absolve", digest, token)

    async def record(
        self, tenant: str, principal: str, action: str, module: str, before: str = "", after: str = ""
    ) -> AuditEvent:
        """Append an event that no change of the store stands behind. before, after: JSON."""
        event_id, stamp = await self._change("record", tenant, principal, action, module, before, after)
        return AuditEvent(event_id, float(stamp), tenant, principal, action, module, before, after)

    async def events(
        self, tenant: str, *, after: str = "", limit: int, block_s: float = 0.0
    ) -> list[AuditEvent]:
        """Up to `limit` events, oldest first, from after the event `after` ("": the first); fewer when they
        are large.

        Where there are none, waits up to `block_s`. Raises InvalidField.
        """
        after = _event_id("after_event_id", after or FIRST_EVENT_ID)
        found = await self._look("events", tenant, after, limit)
        if found or block_s <= 0:
            return [read_event(tenant, event_id, _pairs(fields)) for event_id, fields in found]
        stream = {f"memserve:module:events:{len(tenant.encode())}:{tenant}": after}
        async with answering(block_s + TIMEOUT_S):
            # One: what else has come is read as a page.
            awaited = await self._watching.xread(stream, count=1, block=max(1, int(block_s * 1000)))
        return [
            read_event(tenant, event_id, fields) for _, entries in awaited for event_id, fields in entries
        ]

    async def check_audit(self, tenant: str) -> None:
        """Before long work that ends in a change. Raises AuditFull where the change would."""
        await self._change("check_audit", tenant)

    async def release_audit(self, tenant: str, principal: str, through: str) -> None:
        """Events up to this one have been exported, and may go when the audit is full. Raises InvalidField
        for no event's id.
        """
        await self._change("release_audit", tenant, principal, _event_id("through_event_id", through))

    async def last_event_id(self, tenant: str) -> str:
        """Of the newest event; before the first one, an id that every event comes after."""
        return str(await self._look("last_event_id", tenant))

    async def _look(self, script: str, *arguments: Any) -> Any:
        return await self._run(script, "", arguments)

    async def _change(self, script: str, *arguments: Any) -> list[Any]:
        """Returns what the script answers beside having done it. Raises one of REFUSALS."""
        outcome, *answer = json.loads(await self._run(script, uuid.uuid4().hex, arguments))
        if outcome in REFUSALS:
            raise REFUSALS[outcome](*answer)
        return list(answer)

    async def _run(self, script: str, call: str, arguments: Sequence[Any]) -> Any:
        async with answering(), self._connections:
            try:
                return await self._redis.evalsha(DIGEST, 0, script, call, *self._audit_limits, *arguments)
            except NoScriptError:
                return await self._redis.eval(SCRIPT, 0, script, call, *self._audit_limits, *arguments)


def _event_id(field: str, text: str) -> str:
    match = _EVENT_ID.fullmatch(text)
    if match is None or any(int(part) > _EVENT_PART_MAX for part in match.groups()):
        raise InvalidField(field, "must be the id of an event")
    return text


def _pairs(fields: Sequence[str]) -> dict[str, str]:
    return dict(zip(fields[::2], fields[1::2], strict=True))


def _flag(value: bool) -> str:
    return "1" if value else ""


def _optional(number: float | None) -> float | str:
    return "" if number is None else number
