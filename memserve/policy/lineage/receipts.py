"""What a receipt says of knowledge: which rungs took part, and which facts of modules the text corrects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from memserve.domain import (
    LinkKind,
    Memory,
    ModuleVersion,
    OutdatedFact,
    RecallSource,
    Route,
    RungCost,
    Usage,
)
from memserve.domain.kinds import KINDS
from memserve.domain.lineage import MemoryVersionName
from memserve.policy.modules.self_study.readings import readings_of

CORRECTS = frozenset({LinkKind.SUPERSEDES, LinkKind.CONTRADICTS})
OUTDATED_MAX = 16

Facts = dict[tuple[str, str], str]
"""By what a statement is about, its value in lower case."""


@dataclass(frozen=True, slots=True)
class Taught:
    """A memory that a module was made of, in the version that it was made of."""

    name: MemoryVersionName
    facts: Facts
    """Empty where the version is no longer kept, or states nothing that can be read."""


def facts_of(text: str) -> Facts:
    return {reading.key: " ".join(reading.value.casefold().split()) for reading in readings_of(text)}


def outdated_facts(
    module: str, taught: Sequence[Taught], passages: Iterable[Memory]
) -> tuple[OutdatedFact, ...]:
    """The facts of a module that passages in the prompt correct, at most OUTDATED_MAX.

    A passage corrects a memory that the module was made of when it is a newer version of it with another
    text, when it says that it supersedes or contradicts it and does not state the same, or when it states
    another value of the same.
    """
    by_memory = {each.name.memory: each for each in taught}
    found: dict[tuple[MemoryVersionName, tuple[str, str]], OutdatedFact] = {}
    for passage in passages:
        facts = facts_of(passage.text)
        for known, why in _corrected(passage, facts, taught, by_memory):
            found.setdefault(
                (known.name, passage.name),
                OutdatedFact(module, *known.name, passage.namespace, passage.memory_id, passage.version, why),
            )
    return tuple(found.values())[:OUTDATED_MAX]


def rungs_of(route: Route, usage: Usage, versions: Sequence[ModuleVersion]) -> tuple[RungCost, ...]:
    """Every rung that took part in an answer: passages, a warm prefix, modules.

    versions: those that answered, in the request's order.
    """
    rungs = []
    texts = [part for part in route.recall if part.source in (RecallSource.TEXTS, RecallSource.PINNED)]
    if route.passages:
        count = len(route.passages)
        name = f"{count} passage{'s' if count > 1 else ''}"
        tokens = sum(part.prompt_tokens for part in texts)
        rungs.append(RungCost("passages", name, tokens, ms=sum(part.took_ms for part in texts)))
    cached = usage.cached.device + usage.cached.host + usage.cached.redis
    if cached:
        took = [part.took_ms for part in route.recall if part.source is RecallSource.PREFIX]
        rungs.append(RungCost("prefix", "", cached, ms=sum(took)))
    load_ms = sum(each.load_ms for each in route.candidates if each.worker_id == route.worker_id)
    for version in versions:
        tokens = version.prefix_tokens if KINDS[version.kind].is_prefix else 0
        # The forecast is of all modules of the request together.
        ms = load_ms if len(versions) == 1 else 0.0
        rungs.append(RungCost(str(version.kind), version.reference, tokens, version.size_bytes, ms))
    return tuple(rungs)


def _corrected(
    passage: Memory, facts: Facts, taught: Sequence[Taught], by_memory: dict[tuple[str, str], Taught]
) -> Iterable[tuple[Taught, str]]:
    same = by_memory.get(passage.name)
    if same is not None and passage.version > same.name.version:
        if not same.facts or facts != same.facts:
            named = f"{passage.namespace}/{passage.memory_id}"
            yield same, f"it knows version {same.name.version} of {named}, the text is {passage.version}"
        return
    for link in passage.links:
        target = by_memory.get((link.namespace or passage.namespace, link.memory_id))
        if link.kind in CORRECTS and target is not None and not _says_all_of(facts, target.facts):
            yield target, f"{passage.namespace}/{passage.memory_id} {link.kind} {target.name}"
    for known in taught:
        if known.name.memory == passage.name:
            continue
        for about, value in known.facts.items():
            if facts.get(about, value) != value:
                told = f"{passage.namespace}/{passage.memory_id}@{passage.version}"
                yield known, f"it knows {known.name}, and {told} says otherwise"
                break


def _says_all_of(facts: Facts, known: Facts) -> bool:
    """Whether a text that takes another one's place states the same: a summary does."""
    return bool(known) and all(facts.get(about) == value for about, value in known.items())
