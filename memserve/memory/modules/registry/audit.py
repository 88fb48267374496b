"""The audit in the registry: an event for every change, read in order and exported."""

from __future__ import annotations

import re
from collections.abc import Sequence

from memserve.domain import AuditEvent
from memserve.errors import InvalidField
from memserve.memory.modules.registry.records import read_event
from memserve.memory.modules.registry.scripts import RegistryScripts
from memserve.registry.client import TIMEOUT_S, answering

FIRST_EVENT_ID = "0-0"
_EVENT_ID = re.compile(r"([0-9]{1,20})-([0-9]{1,20})")
_MAX_EVENT_PART = 2**64 - 1


class AuditRecords(RegistryScripts):
    """The audit of every tenant."""

    async def record(
        self, tenant: str, principal: str, action: str, module: str, before: str = "", after: str = ""
    ) -> AuditEvent:
        """Append an event that no change of the store stands behind. before, after: JSON."""
        event_id, stamp = await self._change(
            "record",
            tenant=tenant,
            principal=principal,
            action=action,
            module=module,
            before=before,
            after=after,
        )
        return AuditEvent(event_id, float(stamp), tenant, principal, action, module, before, after)

    async def events(
        self, tenant: str, *, after: str = "", limit: int, block_s: float = 0.0
    ) -> list[AuditEvent]:
        """Up to `limit` events, oldest first, from after the event `after` ("": the first); fewer when they
        are large.

        Where there are none, waits up to `block_s`. Raises InvalidField.
        """
        after = _event_id("after_event_id", after or FIRST_EVENT_ID)
        page = await self._look("events", tenant=tenant, after=after, limit=limit)
        if page or block_s <= 0:
            return [read_event(tenant, event_id, _pairs(fields)) for event_id, fields in page]
        stream = {f"memserve:module:events:{len(tenant.encode())}:{tenant}": after}
        async with answering(block_s + TIMEOUT_S):
            # One event: what else has come is read as a page.
            awaited = await self._watching.xread(stream, count=1, block=max(1, int(block_s * 1000)))
        return [
            read_event(tenant, event_id, fields) for _, entries in awaited for event_id, fields in entries
        ]

    async def check_audit(self, tenant: str) -> None:
        """Before long work that ends in a change. Raises AuditFull where the change would."""
        await self._change("check_audit", tenant=tenant)

    async def release_audit(self, tenant: str, principal: str, through: str) -> None:
        """Events up to this one have been exported, and may go when the audit is full. Raises InvalidField
        for no event's id.
        """
        through = _event_id("through_event_id", through)
        await self._change("release_audit", tenant=tenant, principal=principal, through=through)

    async def last_event_id(self, tenant: str) -> str:
        """Of the newest event; before the first one, an id that every event comes after."""
        return str(await self._look("last_event_id", tenant=tenant))


def _event_id(field: str, text: str) -> str:
    match = _EVENT_ID.fullmatch(text)
    if match is None or any(int(part) > _MAX_EVENT_PART for part in match.groups()):
        raise InvalidField(field, "must be the id of an event")
    return text


def _pairs(fields: Sequence[str]) -> dict[str, str]:
    return dict(zip(fields[::2], fields[1::2], strict=True))
