"""Lineage and erasure, measured: a real memserve on the demo model.

A module knows some facts, which are memories too, and pinned. One fact is erased. Before and after, it and
its neighbours are asked by every rung: text by recall, text pinned as a warm prefix, the module. Then all of
memserve is searched for its words: the data directory, both Redis, an export.

Without `--quick` the module is distilled from 24 facts, and made again without the erased one, which takes
some minutes. With it the demo's own adapter is published with the facts as its sources.
"""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass, field

import redis

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.stack import running_stack, variant
from loadtests.modules.lineage.asking import (
    HANDBOOK,
    NAMESPACE,
    PINNED,
    RUNGS,
    Fact,
    distilled_facts,
    shares,
    shipped_facts,
)
from loadtests.texts.memory_erasure.scanning import Scan
from memserve.client import Client, DistilChoice, Erasure, ErasureState, LineageKind
from memserve.domain import ModuleKind
from memserve.embedded import Stack

MARK = "quillonberthe"
"""A word that nothing else has: the erased memory's keyword."""
NEIGHBOURS, PINNED_FACTS = 6, 4
TIMEOUT_S = 1800.0
STORED_S = 20.0
PLACES = {
    "history", "index", "embeddings", "registry_log", "answers", "uses", "backups", "aliases", "modules",
    "module_kv", "engines", "kv", "retraining",
}  # fmt: skip


@dataclass
class Story:
    """What was seen."""

    before: dict[str, dict[str, float | None]] = field(default_factory=dict)
    after: dict[str, dict[str, float | None]] = field(default_factory=dict)
    retrained: dict[str, float | None] = field(default_factory=dict)
    found_before: int = 0
    found_after: list[str] = field(default_factory=list)
    scanned_files: int = 0
    erased: Erasure | None = None
    erase_s: float = 0.0
    distil_s: float = 0.0
    retrain_s: float = 0.0
    left: int = 0
    nodes: int = 0


def main() -> int:
    options = parser("lineage", __doc__)
    options.add_argument("--seed", type=int, default=20)
    options.add_argument("--workers", type=int, default=2)
    arguments = options.parse_args()
    facts = shipped_facts() if arguments.quick else distilled_facts(arguments.seed)
    story = Story()
    running = running_stack(workers=arguments.workers)
    with running as stack, Client(stack.address, timeout_s=TIMEOUT_S) as client:
        tell(stack, client, facts, story, arguments.seed if not arguments.quick else None)
    show(story)
    erased = story.erased
    assert erased is not None
    places = {place.place for place in erased.places}
    asked = [share for share in story.after["erased"].values() if share is not None]
    bars = [
        Bar("the erased fact by any rung", max(asked), at_most=0),
        Bar("places where it is found before", story.found_before, at_least=3),
        Bar("places where it is found after", len(story.found_after), at_most=0),
        Bar("places that the report leaves out", len(PLACES - places), at_most=0),
        Bar("things that a check still finds", story.left, at_most=0),
        Bar("the erasure is done", erased.state is ErasureState.DONE, at_least=1),
        Bar("neighbours by text, lost", lost(story, "text"), at_most=0),
        Bar("neighbours by warm prefix, lost", lost(story, "warm prefix"), at_most=0),
    ]
    if not arguments.quick:
        before = story.before["neighbours"]["module"] or 0.0
        again = story.retrained["neighbours"] or 0.0
        bars += [
            Bar("neighbours by the module made again / before", again / max(before, 0.01), at_least=0.9),
            Bar("the erased fact by the module made again", story.retrained["erased"] or 0.0, at_most=0),
        ]
    figures: dict[str, object] = {
        "facts": len(facts),
        "before": story.before,
        "after": story.after,
        "retrained": story.retrained,
        "erase_s": story.erase_s,
        "distil_s": story.distil_s,
        "retrain_s": story.retrain_s,
        "places": {place.place: place.removed for place in erased.places},
        "scanned_files": story.scanned_files,
        "lineage_nodes": story.nodes,
    }
    return finish(bars, figures, arguments.json)


def tell(stack: Stack, client: Client, facts: list[Fact], story: Story, seed: int | None) -> None:
    """seed: of a distillation. None: the demo's adapter is published."""
    victim, others = facts[0], facts[1:]
    neighbours = others[:NEIGHBOURS]
    for fact in facts:
        keywords = [MARK] if fact is victim else []
        client.remember(NAMESPACE, fact.text, memory_id=fact.memory_id, keywords=keywords)
    pinned = (victim, *others[: PINNED_FACTS - 1])
    for fact in pinned:
        client.remember(PINNED, fact.text, memory_id=f"pinned-{fact.memory_id}", pinned=True)
    module_of(stack, client, facts, story, seed)
    report("asking before")
    story.before = {"erased": shares(client, [victim]), "neighbours": shares(client, neighbours)}
    story.before["neighbours"]["warm prefix"] = shares(client, pinned[1:])["warm prefix"]
    until_stored(client)
    story.nodes = len(client.lineage.show(f"{NAMESPACE}/{victim.memory_id}").nodes)
    kinds = {node.kind for node in client.lineage.show(f"{HANDBOOK}@1").nodes}
    report(f"lineage of the module: {', '.join(sorted(kinds & set(LineageKind)))}")
    plan = client.lineage.plan_erasure(NAMESPACE, victim.memory_id)
    report(f"a dry run retires {', '.join(plan.retired)}")
    before = scanned(stack, client, victim)
    story.found_before = len(before.found)
    report("erasing")
    started_s = time.monotonic()
    client.lineage.erase(PINNED, f"pinned-{victim.memory_id}", reason="asked")
    story.erased = client.lineage.erase(NAMESPACE, victim.memory_id, reason="asked")
    story.erase_s = time.monotonic() - started_s
    after = scanned(stack, client, victim)
    story.found_after, story.scanned_files = after.found, after.files
    story.left = sum(place.removed for place in client.lineage.check_erasure(story.erased.erasure_id).places)
    report("asking after")
    story.after = {"erased": shares(client, [victim]), "neighbours": shares(client, neighbours)}
    story.after["neighbours"]["warm prefix"] = shares(client, pinned[1:])["warm prefix"]
    if seed is not None:
        retrain(client, victim, neighbours, story, seed)


def module_of(stack: Stack, client: Client, facts: list[Fact], story: Story, seed: int | None) -> None:
    if seed is None:
        folder = variant("harbour", stack.settings.data.parent / f"{stack.settings.data.name}-module")
        sources = [f"memory:{NAMESPACE}/{fact.memory_id}@1" for fact in facts]
        version = client.modules.publish(HANDBOOK, folder, sources=sources)
        shutil.rmtree(folder)
    else:
        report("distilling")
        started_s = time.monotonic()
        distilled = client.modules.distil(
            HANDBOOK, DistilChoice((NAMESPACE,)), seed=seed, kind=ModuleKind.LORA
        )
        assert distilled is not None
        version, story.distil_s = distilled, time.monotonic() - started_s
    client.modules.promote(HANDBOOK, version.version, force=True)


def retrain(client: Client, victim: Fact, neighbours: list[Fact], story: Story, seed: int) -> None:
    """As `memserve lineage retrain` does."""
    [entry] = [each for erasure in client.lineage.erasures() for each in erasure.retraining]
    report(f"distilling again, of {len(entry.memories)} memories")
    started_s = time.monotonic()
    version = client.modules.distil(
        HANDBOOK, DistilChoice(memories=entry.memories), seed=seed, kind=ModuleKind.LORA
    )
    story.retrain_s = time.monotonic() - started_s
    assert version is not None
    client.modules.promote(HANDBOOK, version.version, force=True)
    story.retrained = {
        "erased": shares(client, [victim])["module"],
        "neighbours": shares(client, neighbours)["module"],
    }


def until_stored(client: Client) -> None:
    """Workers store KV after an answer."""
    deadline_s = time.monotonic() + STORED_S
    while not client.activation.usage().chunks and time.monotonic() < deadline_s:
        time.sleep(0.2)


def scanned(stack: Stack, client: Client, fact: Fact) -> Scan:
    """All files of the data directory, both Redis, and an export."""
    text = fact.text
    scan = Scan({
        "text": text.encode(), "text, lower case": text.lower().encode(), "keyword": MARK.encode(),
        "text in UTF-16": text.encode("utf-16-le"),
    })  # fmt: skip
    scan.folder(stack.settings.data, [MARK])
    for name, url in (("registry", stack.settings.redis_url), ("cache", stack.settings.cache_redis_url)):
        with redis.Redis.from_url(url.get_secret_value()) as server:
            scan.server(name, server)
    scan.redis_files("registry", stack.settings.data / "registry")
    scan.look("an export", "\n".join(client.export_memories()).encode())
    return scan


def lost(story: Story, rung: str) -> float:
    """Of the neighbours."""
    before, after = story.before["neighbours"][rung], story.after["neighbours"][rung]
    return max((before or 0.0) - (after or 0.0), 0.0)


def show(story: Story) -> None:
    def shown(share: float | None) -> str:
        return "retired" if share is None else f"{share:.2f}"

    rows = []
    for who in ("erased", "neighbours"):
        for when, figures in (("before", story.before), ("after", story.after)):
            rows.append((f"{who} {when}", *(shown(figures[who][rung]) for rung in RUNGS)))
    if story.retrained:
        rows += [(f"{who} made again", "", "", shown(story.retrained[who])) for who in story.retrained]
    print_table(("answered", *RUNGS), rows)
    erased = story.erased
    assert erased is not None
    print_table(("place", "removed"), [(place.place, place.removed) for place in erased.places])
    print(f"erased in {story.erase_s:.1f} s, retired: {', '.join(erased.retired)}")
    if story.retrain_s:
        print(f"distilled in {story.distil_s:.0f} s, again without it in {story.retrain_s:.0f} s")
    for place in story.found_after[:20]:
        print(f"  still in {place}")


if __name__ == "__main__":
    sys.exit(main())
