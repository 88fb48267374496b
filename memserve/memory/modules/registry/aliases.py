"""Aliases of modules in the registry: what they point at, their histories, and their canaries."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memserve.domain import Alias, AliasChange, TrafficShare
from memserve.errors import InvalidField, ModuleNotFound
from memserve.memory.modules.registry.records import (
    CanaryAlias,
    read_alias,
    read_alias_change,
    read_canary,
)
from memserve.memory.modules.registry.scripts import RegistryScripts, flag, optional
from memserve.registry.client import answering

# Of the watch over canaries, beside the records that the scripts keep.
CANARIES = "memserve:module:canaries:"
COUNTS_KEPT_S = 7 * 24 * 3600


@dataclass(frozen=True, slots=True)
class AliasRef:
    """Which alias."""

    tenant: str
    module: str
    alias: str


@dataclass(frozen=True, slots=True)
class Change:
    """Who changes an alias, and why."""

    principal: str
    reason: str = ""
    expected_revision: int | None = None
    """The alias must be at it, else AliasConflict is raised. 0: not set yet; None: whatever it is at."""
    forced: bool = False
    """Although the gate has refused it."""


class AliasRecords(RegistryScripts):
    """The aliases of every tenant's modules."""

    async def set_alias(
        self,
        ref: AliasRef,
        targets: Sequence[TrafficShare],
        change: Change,
        *,
        action: str,
        ungated_share_max: float | None = None,
    ) -> Alias:
        """Point an alias. action: as the history and the audit call it.

        ungated_share_max: the part of the whole, 0 to 1, that versions which have not passed the gate may
        have together; None: any. Raises AliasConflict, InvalidField for more than that part, and
        ModuleNotFound for a target that does not exist or is held for its deletion.
        """
        if not targets:
            raise InvalidField("targets", "must name at least one version")
        shares = [{"version": share.version, "weight": float(share.weight)} for share in targets]
        [alias] = await self._change(
            "set_alias",
            **_named(ref, change),
            action=action,
            targets=json.dumps(shares),
            forced=flag(change.forced),
            ungated_share_max=optional(ungated_share_max),
        )
        return read_alias(alias)

    async def rollback(
        self, ref: AliasRef, change: Change, *, action: str = "rollback", leaving: int | None = None
    ) -> Alias:
        """Point an alias at the targets that it had before the present ones. Two in a row go two steps back.

        leaving: the version that is the trouble; it must be among the targets, and is not among those gone
        back to. Raises ModuleNotFound, AliasConflict, and NothingToRollBack, also where an earlier target has
        been deleted.
        """
        [alias] = await self._change(
            "rollback", **_named(ref, change), action=action, leaving=optional(leaving)
        )
        return read_alias(alias)

    async def take_out(
        self, ref: AliasRef, version: int, change: Change, *, action: str = "canary_rollback"
    ) -> Alias:
        """Take a version out of an alias; the others keep their weights. Where it is the only one, `rollback`
        with `leaving`.

        A rollback then goes back from what the alias was before the version came to it. Raises as `rollback`.
        """
        [alias] = await self._change("take_out", **_named(ref, change), action=action, number=version)
        return read_alias(alias)

    async def drop_alias(self, ref: AliasRef, change: Change) -> Alias:
        """Take an alias away. Set again, its revision goes on from there, and nothing goes back to before.

        Returns what it was. Raises AliasConflict, and ModuleNotFound where it does not exist.
        """
        [alias] = await self._change("drop_alias", **_named(ref, change))
        return read_alias(alias)

    async def history(self, ref: AliasRef, *, after: int = 0, limit: int) -> list[AliasChange]:
        """Up to `limit` changes of an alias, oldest first, from after the revision `after`; fewer when they
        are large.

        Where it was dropped, it has no targets.

        Raises ModuleNotFound for a name that never had a version.
        """
        history = await self._look(
            "history", tenant=ref.tenant, module=ref.module, alias=ref.alias, after=after, limit=limit
        )
        if history is None:
            raise ModuleNotFound(ref.module)
        return self._reader.read(history, read_alias_change)

    async def canaries(self) -> list[CanaryAlias]:
        """The aliases of all tenants that have any. Kept by the changes of aliases themselves."""
        flat = await self._look("canaries")
        readable = self._reader.read(zip(flat[::2], flat[1::2], strict=True), read_canary)
        return sorted(readable, key=lambda canary: (canary.tenant, canary.name, canary.alias))

    async def take_turn(self, canary: CanaryAlias, seconds: float) -> bool:
        """True for one caller in so many seconds: the others need not look at the alias."""
        turn = f"{CANARIES}turn:{json.dumps([canary.tenant, canary.name, canary.alias])}"
        async with answering(), self._connections:
            return bool(await self._redis.set(turn, "", nx=True, px=max(int(seconds * 1000), 1)))

    async def count_outcomes(
        self, canary: CanaryAlias, version: int, answered: int, refused: int
    ) -> tuple[int, int]:
        """Add what one gateway has seen of a canary since it counted last. Returns what all gateways have
        seen of it: how many answers began with it, and how many workers would not answer with it.

        The counts are of the alias's present revision. They go when nothing was added for COUNTS_KEPT_S.
        """
        named = json.dumps([canary.tenant, canary.name, canary.alias, canary.revision, version])
        key = f"{CANARIES}outcomes:{named}"
        async with answering(), self._connections, self._redis.pipeline(transaction=True) as pipeline:
            if answered or refused:
                pipeline.hincrby(key, "answered", answered)
                pipeline.hincrby(key, "refused", refused)
                pipeline.expire(key, COUNTS_KEPT_S)
            pipeline.hmget(key, "answered", "refused")
            [*_, counts] = await pipeline.execute()
        return int(counts[0] or 0), int(counts[1] or 0)


def _named(ref: AliasRef, change: Change) -> dict[str, Any]:
    """The arguments that every change of an alias has."""
    return {
        "tenant": ref.tenant,
        "principal": change.principal,
        "module": ref.module,
        "alias": ref.alias,
        "reason": change.reason,
        "expected_revision": optional(change.expected_revision),
    }
