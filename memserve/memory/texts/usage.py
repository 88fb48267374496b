"""What the namespaces of a store hold, counted by reading every record: when a registry has no counts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from memserve.domain import MemoryState, NamespaceUsage
from memserve.memory.texts.index import OWN_WORK, VectorIndex
from memserve.memory.texts.journal_entries import VECTOR_BYTES, pinned_bytes, record_bytes
from memserve.memory.texts.milvus import MilvusMemories
from memserve.memory.texts.records import Record

PAGE_ROWS = 256
TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Held:
    """What a store holds of all tenants."""

    usages: dict[str, list[NamespaceUsage]]
    """By tenant key. Namespaces without a memory are part of it where the store knows them."""
    pinned: dict[tuple[str, str], dict[str, int]]
    """By tenant key and namespace, the bytes of the text of each pinned memory, by its id."""


async def usage_of_all(index: VectorIndex, dim: int) -> Held:
    named = await index.write(OWN_WORK, lambda store: store.counts(timeout_s=TIMEOUT_S))
    held: dict[tuple[str, str], list[int]] = {name: [0, 0, 0] for name in named}
    pinned: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    after = ""
    while page := await index.write(OWN_WORK, partial(_page, after=after)):
        for record in page:
            name = record.tenant_key, record.memory.namespace
            counts = held.setdefault(name, [0, 0, 0])
            counts[0] += record.memory.state is MemoryState.LIVE
            counts[1] += 1
            counts[2] += record_bytes(record) + VECTOR_BYTES * dim
            if text_bytes := pinned_bytes(record):
                pinned[name][record.memory.memory_id] = text_bytes
        after = page[-1].key
    usages: dict[str, list[NamespaceUsage]] = defaultdict(list)
    for (tenant, namespace), (live, records, size_bytes) in sorted(held.items()):
        usages[tenant].append(NamespaceUsage(namespace, live, records, size_bytes))
    return Held(dict(usages), dict(pinned))


def _page(store: MilvusMemories, *, after: str) -> Sequence[Record]:
    keys = [key.key for key in store.keys_after(after, PAGE_ROWS, timeout_s=TIMEOUT_S)]
    found = store.get_many(keys, timeout_s=TIMEOUT_S)
    return [found[key] for key in keys if key in found]
