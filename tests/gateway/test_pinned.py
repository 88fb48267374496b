"""Pinned passages follow what their gateway writes, at once."""

from __future__ import annotations

from pathlib import Path

from memserve.demo import MODEL_DIR
from tests.gateway.running import open_gateway


async def test_an_erased_pinned_memory_is_in_no_later_prompt(tmp_path: Path) -> None:
    async with open_gateway(tmp_path, MODEL_DIR, recall_timeout_ms=10_000) as gateway:
        client = gateway.client

        async def pinned() -> list[str]:
            recalled = await client.recall("Who?", namespaces="rules", options={"min_relevance": 1.0})
            return [hit.memory.memory_id for hit in recalled.passages]

        await client.remember("rules", "The captain is Berit.", memory_id="a", pinned=True)
        assert await pinned() == ["a"]
        await client.remember("rules", "The harbour closes at nine.", memory_id="b", pinned=True)
        assert await pinned() == ["a", "b"]
        await client.update_memory("rules", "b", pinned=False)
        assert await pinned() == ["a"]
        await client.erase_memory("rules", "a")
        assert await pinned() == []
