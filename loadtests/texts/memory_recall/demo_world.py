"""The demo model's world: the facts of its three shipped modules as memories, and others around them."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from loadtests.texts.memory_recall.worlds import (
    CHANGED,
    EXPIRED,
    KNOWN,
    NAMESPACE,
    NEAR_MISS,
    NOT_YET,
    UNKNOWN,
    UPDATED,
    Change,
    Question,
    World,
)
from memserve.demo import ADAPTERS_DIR, EXPERTS_DIR, facts
from memserve.demo.adapters import held_facts
from memserve.demo.experts import expert_facts, expert_names
from memserve.demo.facts import Entity, Fact
from memserve.domain import NewMemory

# The modules' probes have the first one: what a module knows is told by it, and the others are asked.
PROBED, *ASKED = facts.HELD_OUT_QUESTIONS
OTHERS = 96
DAY_S = 86_400.0


def demo_world(folder: Path, *, seed: int, questions: int) -> World:
    """folder: gets the modules, with probes in one phrasing.

    questions: how many of each module, and of all that changed and of each kind that has no answer.
    """
    rng = random.Random(f"memory-recall-{seed}")
    held = {**{name: facts.adapter_facts(name) for name in facts.ADAPTER_KINDS}}
    held |= {name: expert_facts(name) for name in expert_names()}
    known = [fact for of_module in held.values() for fact in of_module]
    others = facts.distinct_facts(rng, "held_out", OTHERS + questions, without=known)
    changing, rest = others[:questions], others[questions:]
    memories = [_memory(rng, fact) for fact in (*known, *others)]
    rng.shuffle(memories)
    asked = [
        _question(rng, fact, KNOWN, module) for module, some in held.items() for fact in some[:questions]
    ]
    changes = [_change(rng, fact, CHANGED[place % len(CHANGED)]) for place, fact in enumerate(changing)]
    asked += [_changed_question(rng, change, fact) for change, fact in zip(changes, changing, strict=True)]
    told = {fact.key for fact in (*known, *others)}
    asked += [_question(rng, fact, UNKNOWN) for fact in _unknown(rng, told, questions)]
    asked += [_question(rng, fact, NEAR_MISS) for fact in _near(rng, (*known, *rest), told, questions)]
    modules = {name: _module(folder / name, name) for name in held}
    return World("demo model", tuple(memories), tuple(changes), tuple(asked), modules, facts.UNKNOWN_ANSWER)


def memory_id(fact: Fact) -> str:
    return "-".join((*fact.entity.name.split(), fact.attribute)).lower()


def _memory(rng: random.Random, fact: Fact) -> NewMemory:
    return NewMemory(NAMESPACE, facts.passage(rng, fact), "generated", memory_id=memory_id(fact))


def _question(rng: random.Random, fact: Fact, kind: str, module: str = "") -> Question:
    text = facts.question(rng, fact, ASKED).text
    if kind == KNOWN:
        return Question(text, fact.value, kind, memory_id(fact), module)
    return Question(text, "", kind)


def _change(rng: random.Random, fact: Fact, kind: str) -> Change:
    value = fact.value
    while value == fact.value:
        value = facts.value(rng, facts.ATTRIBUTES.get(fact.entity.kind, {}).get(fact.attribute, "wild"))
    first, later = memory_id(fact), Fact(fact.entity, fact.attribute, value)
    now_s = time.time()
    return Change(
        kind,
        first,
        NewMemory(
            NAMESPACE,
            facts.statement(rng, later),
            "generated",
            memory_id=first if kind == UPDATED else f"{first}-later",
            metadata={"value": value},
            valid_from_s=now_s + 30 * DAY_S if kind == NOT_YET else None,
            valid_until_s=now_s - DAY_S if kind == EXPIRED else None,
        ),
    )


def _changed_question(rng: random.Random, change: Change, fact: Fact) -> Question:
    text = facts.question(rng, fact, ASKED).text
    if change.kind in (EXPIRED, NOT_YET):
        return Question(text, fact.value, change.kind, change.memory_id)
    return Question(text, str(change.later.metadata["value"]), change.kind, change.later.memory_id)


def _unknown(rng: random.Random, told: set[tuple[str, str]], count: int) -> list[Fact]:
    """Facts of things that no memory names."""
    named = {name for name, _ in told}
    drawn: list[Fact] = []
    while len(drawn) < count:
        fact = facts.fact(rng, "held_out")
        if fact.entity.name not in named:
            named.add(fact.entity.name)
            drawn.append(fact)
    return drawn


def _near(rng: random.Random, known: Sequence[Fact], told: set[tuple[str, str]], count: int) -> list[Fact]:
    """Other attributes of known things, and the same attributes of things with half of the name."""
    drawn: list[Fact] = []
    seen = set(told)
    while len(drawn) < count:
        fact = facts.near_fact(rng, "held_out", rng.choice(known))
        if fact.key not in seen:
            seen.add(fact.key)
            drawn.append(fact)
    return drawn


def _module(folder: Path, name: str) -> Path:
    """The shipped module, with a probe for each of its facts in the phrasing that is not asked here."""
    source = next(root / name for root in (ADAPTERS_DIR, EXPERTS_DIR) if (root / name).is_dir())
    shutil.copytree(source, folder)
    probes = []
    for fact in held_facts(name, source.parent):
        known = Fact(Entity(fact.entity, fact.kind), fact.attribute, fact.value)
        text = facts.question(random.Random(0), known, (PROBED,)).text
        probes.append({"question": text, "answers": [fact.answer]})
    sets = [{"name": "recall", "kind": "recall", "probes": probes}]
    (folder / "probes.json").write_text(json.dumps({"sets": sets}), encoding="utf-8")
    return folder
