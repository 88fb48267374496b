"""Memories of a handbook, and calls with the arguments that most tests share."""

from collections.abc import Sequence

from memserve.domain import Memory, NewMemory, ScoredMemory, SearchQuery
from memserve.memory.texts.memory import VectorMemory

TENANT = "acme"
HANDBOOK = [
    ("heating", "To turn off the radiators, press the red button beside the boiler."),
    ("gate", "The north gate opens with the code QX7741B."),
    ("gate-south", "The south gate opens with the code QX7741C."),
    ("lunch", "Lunch is served at noon in the canteen on the second floor."),
    ("printer", "The printer on floor two needs toner cartridge 85A."),
    ("pump", "The pump in hall 3 must be primed by hand after a power cut."),
]


async def remember(
    memory: VectorMemory,
    text: str,
    *,
    tenant: str = TENANT,
    namespace: str = "handbook",
    memory_id: str = "",
    source: str = "handbook.pdf",
    keywords: Sequence[str] = (),
) -> Memory:
    new = NewMemory(namespace, text, source=source, keywords=tuple(keywords), memory_id=memory_id)
    stored = (await memory.remember(tenant, new)).memory
    assert stored is not None
    return stored


async def remember_handbook(memory: VectorMemory) -> None:
    for memory_id, text in HANDBOOK:
        await remember(memory, text, memory_id=memory_id)


async def search(
    memory: VectorMemory,
    query: str,
    *,
    tenant: str = TENANT,
    namespace: str = "handbook",
    limit: int = 5,
    namespaces: Sequence[str] = (),
) -> list[ScoredMemory]:
    asked = SearchQuery(tuple(namespaces) or (namespace,), query, limit)
    return list((await memory.search(tenant, asked, 10.0)).hits)


def ids(hits: Sequence[ScoredMemory]) -> list[str]:
    return [hit.memory.memory_id for hit in hits]
