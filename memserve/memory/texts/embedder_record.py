"""Which model embeds the memories, as the registry records it for all gateways."""

from __future__ import annotations

import secrets

from memserve.errors import EmbedderChanged, VectorStoreUnavailable
from memserve.memory.texts.journal import PENDING, STATE, Journal
from memserve.memory.texts.journal_entries import Model

LEASE_S = 30.0
"""A gateway that reindexes has to say so again within this time."""


class EmbedderRecord:
    """Changes of the model, in the registry. Methods raise RegistryUnavailable."""

    def __init__(self, journal: Journal, before: Model, *, is_only: bool) -> None:
        """before: the model that embeds the memories now.

        is_only: whether there is no other gateway. It then goes on at once after it was killed.
        """
        self._journal = journal
        self._before = before
        self._by = "the only one" if is_only else secrets.token_hex(8)

    async def claim(self, lease_s: float = LEASE_S) -> None:
        """Say that this gateway reindexes. lease_s: 0 when it has ended.

        Raises EmbedderChanged, and VectorStoreUnavailable while another gateway does it.
        """
        refusal = await self._journal.run(
            "reindexing", [PENDING, STATE], by=self._by, lease_s=lease_s, embedder=self._before.embedder
        )
        if refusal == b"embedder":
            now = (await self._journal.state()).get("embedder_name", self._before.default)
            raise EmbedderChanged(now, self._before.name)
        if refusal == b"elsewhere":
            raise VectorStoreUnavailable("another gateway embeds the memories again")

    async def hold(self, seconds: float) -> str:
        """Take no write of any gateway for so long. 0: take them again. Returns the last write's sequence."""
        sequence = await self._journal.run("hold", [PENDING, STATE], seconds=seconds)
        return sequence.decode() if isinstance(sequence, bytes) else str(sequence)

    async def switch(self, after: Model, sequence: str) -> bool:
        """Record the new model, and drop what is pending: it is durable in the new collection.

        sequence: as `hold` returned it. Returns False, and changes nothing, where writes are held no more.
        """
        switched = await self._journal.run(
            "switch_embedder",
            [PENDING, STATE],
            before=self._before.embedder,
            embedder=after.embedder,
            name=after.name,
            sequence=sequence,
        )
        return bool(switched)
