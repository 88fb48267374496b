"""What an erased memory has left outside its store: answers and uses. `erasures/` has the rest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from memserve.domain import ErasedPlace
from memserve.memory.answers.store import KeptAnswers
from memserve.memory.texts.records import Record
from memserve.memory.texts.uses import UseLedger

BACKUPS = "backups"


@dataclass(frozen=True, slots=True)
class OutsideTheStore:
    """Each method is an eraser of `VectorMemory`."""

    answers: KeptAnswers
    ledger: UseLedger
    data: Path
    """The gateway's data directory."""

    async def kept_answers(self, tenant: str, record: Record) -> ErasedPlace:
        """Raises RegistryUnavailable."""
        removed = await self.answers.forget_memory(tenant, record.key)
        return ErasedPlace("answers", removed, "kept answers that used it or left it out, with their prompts")

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
