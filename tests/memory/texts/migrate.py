"""A process that moves an old store's memories, and is killed meanwhile: `python -m … URI REDIS DIM`.

It says "opened" and how many memories it has looked at, a page a line.
"""

from __future__ import annotations

import asyncio
import sys

from memserve.memory.texts import migration
from memserve.memory.texts.index import VectorIndex
from memserve.memory.texts.journal import Journal
from memserve.memory.texts.journal_entries import Quotas
from memserve.memory.texts.milvus import Vectors

PAGE_ROWS = 32


class SpokenFigures(migration.MigrationFigures):
    """Says each page."""

    def __setattr__(self, name: str, value: int) -> None:
        super().__setattr__(name, value)
        if name == "looked_at":
            print(value, flush=True)


async def main() -> None:
    uri, redis_url, dim = sys.argv[1:]
    migration.PAGE_ROWS = PAGE_ROWS
    index = VectorIndex(uri, Vectors(int(dim)), None, is_searched=True, call_timeout_s=10)
    journal = Journal(redis_url, Quotas())
    await migration.move_old_memories(index, journal, SpokenFigures())
    print("moved", flush=True)
    await index.close(clean=True)
    await journal.close()


if __name__ == "__main__":
    asyncio.run(main())
