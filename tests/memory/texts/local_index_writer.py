"""A process that puts records into a local index until it is killed. It prints the ids that it has put."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from memserve.memory.texts.local.index import LocalIndex
from tests.memory.texts.store_records import DIM, memory_of, record_of

if __name__ == "__main__":
    index = LocalIndex.open(Path(sys.argv[1]), DIM, "a-model")
    for number in itertools.count():
        name = f"m{number:05}"
        index.put([record_of("writer", memory_of(name, f"lighthouse {number}"))], timeout_s=30.0)
        print(name, flush=True)
