"""A batch of 10,000 memories of which one in a hundred is bad: each of those is told, and the rest is stored.

The batch goes over gRPC to a gateway with a registry and Milvus Lite. Ten kinds of bad items are at seeded
places. Afterwards every stored memory is listed, some are searched for, and the batch is sent once more: it
must change nothing.
"""

from __future__ import annotations

import asyncio
import math
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from memserve.client import AsyncClient, ItemResult
from memserve.demo import MODEL_DIR
from memserve.domain import NewMemory
from tests.gateway.running import open_gateway

ITEMS, QUICK_ITEMS = 10_000, 2_000
BAD_SHARE = 0.01
SEARCHES = 20
NAMESPACE = "crates"
CALL_TIMEOUT_S = 300.0
SEED = 19
ANOTHER_TEXT = ""
"""The field that the refusal of an id with another text names: none."""
BAD = (
    ("text", {"text": " \n"}),
    ("text", {"text": "x" * 8193}),
    ("namespace", {"namespace": "No Name"}),
    ("memory_id", {"memory_id": "-first"}),
    ("strength", {"strength": math.nan}),
    ("metadata", {"metadata": {"a b": 1}}),
    ("applies_when", {"applies_when": "(" * 100 + "user"}),
    ("keywords", {"keywords": ("word",) * 17}),
    ("valid_until_s", {"valid_until_s": math.inf}),
    (ANOTHER_TEXT, {"text": "Another text of an id that is there.", "memory_id": "m0"}),
)
"""Each kind's field, as a refusal names it, and what is bad."""


@dataclass(frozen=True, slots=True)
class Batch:
    items: list[NewMemory]
    bad: dict[int, str]
    """By place: the field that its refusal must name."""


@dataclass
class Figures:
    """Of one batch, sent twice."""

    items: int = 0
    bad: int = 0
    first_s: float = 0.0
    again_s: float = 0.0
    longest_wait_s: float = 0.0
    """Between two results."""
    not_told: int = 0
    """Bad items without a refusal, or with one that names another field."""
    refused: int = 0
    """Good items."""
    missing: int = 0
    """Good items that no list has."""
    strangers: int = 0
    """What lists have beside them."""
    out_of_order: int = 0
    not_found: int = 0
    """Of SEARCHES."""
    changed_again: int = 0
    by_field: Counter[str] = field(default_factory=Counter)


def draw_batch(items: int, seed: int, bad_share: float = BAD_SHARE) -> Batch:
    """The first item is good: a bad one names its id."""
    draw = random.Random(seed)
    drawn = [
        NewMemory(NAMESPACE, f"Crate {n} stands in hall {n % 97}, row {n % 13}.", memory_id=f"m{n}")
        for n in range(items)
    ]
    bad = {}
    for number, place in enumerate(draw.sample(range(1, items), round(items * bad_share))):
        bad[place], changes = BAD[number % len(BAD)]
        drawn[place] = replace(drawn[place], **changes)  # type: ignore[arg-type]
    return Batch(drawn, bad)


async def send(client: AsyncClient, batch: Batch, figures: Figures) -> list[ItemResult]:
    results, last_s = list[ItemResult](), time.monotonic()
    async for result in client.remember_many(batch.items):
        now_s = time.monotonic()
        figures.longest_wait_s, last_s = max(figures.longest_wait_s, now_s - last_s), now_s
        figures.out_of_order += result.index != len(results)
        results.append(result)
        if len(results) % 2_000 == 0:
            report(f"{len(results)} of {len(batch.items)} are told")
    return results


def judge(batch: Batch, results: Sequence[ItemResult], figures: Figures) -> None:
    """Hold the results against the batch."""
    for place, result in enumerate(results):
        refusal = result.refusal
        if place in batch.bad:
            told = refusal is not None and refusal.field == batch.bad[place] and bool(refusal.message)
            figures.not_told += not told
            figures.by_field[batch.bad[place] or "another text"] += told
        else:
            figures.refused += refusal is not None
    figures.not_told += sum(place >= len(results) for place in batch.bad)


async def listed(client: AsyncClient) -> list[str]:
    found, token = list[str](), ""
    while True:
        page = await client.list_memories(NAMESPACE, order="id", page_size=256, page_token=token)
        found += [memory.memory_id for memory in page.memories]
        token = page.next_page_token
        if not token:
            return found


async def run(folder: Path, items: int, seed: int = SEED, bad_share: float = BAD_SHARE) -> Figures:
    batch = draw_batch(items, seed, bad_share)
    figures = Figures(items, len(batch.bad))
    wanted = {item.memory_id for place, item in enumerate(batch.items) if place not in batch.bad}
    async with (
        open_gateway(
            folder,
            MODEL_DIR,
            workers=(),
            memory_changes_per_minute_per_tenant=10**7,
            recall_timeout_ms=10_000,
        ) as gateway,
        AsyncClient(gateway.address, timeout_s=CALL_TIMEOUT_S) as client,
    ):
        began_s = time.monotonic()
        results = await send(client, batch, figures)
        figures.first_s = time.monotonic() - began_s
        judge(batch, results, figures)
        there = Counter(await listed(client))
        figures.missing = len(wanted - there.keys())
        figures.strangers = there.total() - len(wanted & there.keys())
        figures.missing += abs((await client.namespaces()).get(NAMESPACE, 0) - len(wanted))
        for place in random.Random(seed).sample(sorted(set(range(items)) - batch.bad.keys()), SEARCHES):
            hits = await client.search(NAMESPACE, batch.items[place].text, limit=1)
            figures.not_found += [hit.memory.memory_id for hit in hits] != [batch.items[place].memory_id]
        began_s = time.monotonic()
        for result in await send(client, batch, figures):
            remembered = result.remembered
            figures.changed_again += remembered is not None and remembered.created
        figures.again_s = time.monotonic() - began_s
    return figures


def main() -> int:
    """The command line. Returns the exit status."""
    options = parser("memory_batch", __doc__)
    options.add_argument("--seed", type=int, default=SEED, help=f"seed of the places (default: {SEED})")
    chosen = options.parse_args()
    items = QUICK_ITEMS if chosen.quick else ITEMS
    with tempfile.TemporaryDirectory(prefix="memserve-batch-") as folder:
        figures = asyncio.run(run(Path(folder), items, chosen.seed))
    print_table(
        ("items", "bad", "seconds", "items/s", "longest wait, s", "sent again, s"),
        [
            (
                figures.items, figures.bad, f"{figures.first_s:.1f}", f"{items / figures.first_s:.0f}",
                f"{figures.longest_wait_s:.2f}", f"{figures.again_s:.1f}",
            )
        ],
    )  # fmt: skip
    print_table(("a bad item's field", "told"), sorted(figures.by_field.items()))
    bars = [
        Bar("bad items that are not told by their field", figures.not_told, at_most=0),
        Bar("good items that are refused", figures.refused, at_most=0),
        Bar("good items that are missing", figures.missing, at_most=0),
        Bar("memories that nothing sent", figures.strangers, at_most=0),
        Bar("results out of order", figures.out_of_order, at_most=0),
        Bar(f"not found, of {SEARCHES} searches", figures.not_found, at_most=0),
        Bar("changed by sending it again", figures.changed_again, at_most=0),
    ]
    return finish(
        bars,
        {"items": items, "bad": figures.bad, "seconds": figures.first_s, "again_s": figures.again_s},
        chosen.json,
    )


if __name__ == "__main__":
    sys.exit(main())
