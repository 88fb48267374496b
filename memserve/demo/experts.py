"""The demo's logit experts: small models that hold facts of their own, and what those facts are. Imports no torch."""

from __future__ import annotations

import random
from pathlib import Path

from memserve.demo import EXPERTS_DIR, words
from memserve.demo.facts import Fact, entity, fact

EXPERT_KINDS: dict[str, tuple[str, ...]] = {"archive": ("archive", "farm")}
"""Each expert's name and the kinds of entities that its facts are about. No adapter holds facts of these kinds."""
EXPERT_FACTS = 16


def expert_names(directory: Path = EXPERTS_DIR) -> list[str]:
    """The experts that are there, in order of their names."""
    return sorted(each.parent.name for each in directory.glob("*/expert_config.json"))


def expert_facts(name: str) -> tuple[Fact, ...]:
    """The facts that an expert of the demo is trained on. Raises KeyError for an unknown expert."""
    kinds = EXPERT_KINDS[name]
    rng = random.Random(f"expert-{name}")
    facts: list[Fact] = []
    while len(facts) < EXPERT_FACTS:
        about = entity(rng, "adapter", kinds[len(facts) % len(kinds)])
        one = fact(rng, "adapter", about=about, wild_share=0.0)
        named_before = any(one.entity.name == earlier.entity.name or one.value == earlier.value for earlier in facts)
        if about.name.split(" ")[0] in words.FIRST_WORDS and not named_before:
            facts.append(one)
    return tuple(facts)
