"""Memories of a handbook, and calls with the arguments that most tests share."""

from memserve.domain import Memory, ScoredMemory
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
    memory_id: str | None = None,
) -> Memory:
    return await memory.remember(
        tenant, namespace, text, source="handbook.pdf", keywords=(), memory_id=memory_id, now_s=1000.0
    )


async def remember_handbook(memory: VectorMemory) -> None:
    for memory_id, text in HANDBOOK:
        await remember(memory, text, memory_id=memory_id)


async def search(
    memory: VectorMemory, query: str, *, tenant: str = TENANT, namespace: str = "handbook", limit: int = 5
) -> list[ScoredMemory]:
    return await memory.search(tenant, [namespace], query, limit, timeout_s=10)


def ids(hits: list[ScoredMemory]) -> list[str]:
    return [hit.memory.memory_id for hit in hits]
