"""Runs the module store's script. It is in the Lua files beside this one; read `prelude.lua` first."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from dataclasses import dataclass
from typing import Any

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
from memserve.records import LenientReader
from memserve.registry.client import answering, close_client, registry_client
from memserve.registry.script import Script

log = logging.getLogger("memserve.memory.modules.registry.store")

SCRIPT_FILES = (
    "prelude",
    "pages",
    "audit",
    "claims",
    "versions",
    "deletions",
    "aliases",
    "canaries",
    "modules",
    "preloads",
    "distillations",
    "consolidations",
    "run",
)
SCRIPT = Script.of("memserve.memory.modules.registry", *SCRIPT_FILES)
# At most 32 connections. A call that finds none free waits, and the wait counts towards its one-second bound.
CONNECTIONS = 32
# Each that waits for events holds a connection.
MAX_WATCHERS = 4096


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


@dataclass(frozen=True, slots=True)
class RegistryLimits:
    """What a tenant may keep in the registry."""

    modules_max: int | None
    """None: any number."""
    versions_max: int | None
    """Of one module. None: any number."""
    audit_days: int
    """Events of the audit that are older go. 0: none goes."""
    audit_max_bytes: int
    """0: no limit."""


class RegistryScripts:
    """One connection pool to the registry Redis, and the calls of its script.

    Every change is one atomic exchange with Redis, its audit event included. Sent again over a new connection
    it is done once.
    """

    def __init__(self, redis_url: str, limits: RegistryLimits) -> None:
        self._limits = limits
        self._redis = registry_client(redis_url)
        self._watching = registry_client(redis_url, max_connections=MAX_WATCHERS)
        self._connections = asyncio.Semaphore(CONNECTIONS)
        self._reader = LenientReader(log)

    async def close(self) -> None:
        """Whoever waits for events is to be cancelled before."""
        await close_client(self._redis)
        await close_client(self._watching)

    async def _look(self, script: str, **arguments: Any) -> Any:
        """For the script's looks and sweeps, by the names of their arguments."""
        return await self._run(script, "", arguments)

    async def _change(self, script: str, **arguments: Any) -> list[Any]:
        """Returns what the script answers beside having done it. Raises one of REFUSALS."""
        outcome, *answer = json.loads(await self._run(script, uuid.uuid4().hex, arguments))
        if outcome in REFUSALS:
            raise REFUSALS[outcome](*answer)
        return list(answer)

    async def _run(self, script: str, call: str, arguments: dict[str, Any]) -> Any:
        flat = [part for argument in arguments.items() for part in argument]
        named = [script, call, self._limits.audit_days, self._limits.audit_max_bytes, *flat]
        async with answering(), self._connections:
            return await SCRIPT.run(self._redis, (), named)


def flag(value: bool) -> str:
    """As the script takes it."""
    return "1" if value else ""


def optional(number: float | None) -> float | str:
    """As the script takes it."""
    return "" if number is None else number
