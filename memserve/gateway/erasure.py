"""What an erased memory has left outside its store: answers that used it, its uses, KV of prompts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from memserve.domain import ErasedPlace
from memserve.memory.answers.store import KeptAnswers
from memserve.memory.prefixes.memory import ActivationMemory
from memserve.memory.texts.records import Record
from memserve.memory.texts.uses import UseLedger

BACKUPS = "backups"
PINNED_NOTE = "pinned prefixes stay: unpin and evict them"


@dataclass(frozen=True, slots=True)
class OutsideTheStore:
    """Each method is an eraser of `VectorMemory`."""

    answers: KeptAnswers
    ledger: UseLedger
    activation: ActivationMemory
    data: Path
    """The gateway's data directory."""

    async def kept_answers(self, tenant: str, record: Record) -> ErasedPlace:
        """Raises RegistryUnavailable."""
        removed = await self.answers.forget_memory(tenant, record.key)
        return ErasedPlace("answers", removed, "kept answers that used it or left it out, with their prompts")

    async def kv(self, tenant: str, record: Record) -> ErasedPlace:
        """All of the tenant's KV in Redis, where the memory was ever in a prompt: nothing says which chunks
        were computed with it. Raises CacheUnavailable.
        """
        counted = (await self.ledger.read(tenant, [record.memory])).get(record.key)
        if counted is not None and counted.uses == 0:
            counted = None
        if counted is None and not self.ledger.has_waiting(tenant, record.key):
            return ErasedPlace("kv", 0, "it was in no prompt")
        removed, pinned = await self.activation.evict_tenant(tenant)
        note = f"; {pinned} chunks of {PINNED_NOTE}" if pinned else ""
        return ErasedPlace("kv", removed, f"all chunks of the tenant in Redis: one may be its{note}")

    async def uses(self, tenant: str, record: Record) -> ErasedPlace:
        """Raises RegistryUnavailable."""
        removed = await self.ledger.forget(tenant, [record.key])
        return ErasedPlace("uses", removed, "how often it was used, and how that turned out")

    async def backups(self, tenant: str, record: Record) -> ErasedPlace:
        """Nothing is taken out of a backup: it would not be one any more."""
        folder = self.data / BACKUPS
        kept = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        note = (
            f"{len(kept)} may have it, and a restore brings it back; delete them"
            if kept
            else "there are none"
        )
        return ErasedPlace(BACKUPS, 0, note)
