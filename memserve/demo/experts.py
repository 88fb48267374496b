"""The demo's logit experts: small models that hold facts of their own, and what those facts are. Imports no
torch.
"""

from __future__ import annotations

import random
from pathlib import Path

from memserve.demo import EXPERTS_DIR
from memserve.demo.facts import Fact, module_facts

EXPERT_KINDS: dict[str, tuple[str, ...]] = {"archive": ("archive", "farm")}
"""Each expert's name and the kinds of entities that its facts are about. No adapter holds facts of these
kinds.
"""
EXPERT_FACTS = 16


def expert_names(directory: Path = EXPERTS_DIR) -> list[str]:
    """The experts in the directory, in order of their names."""
    return sorted(config.parent.name for config in directory.glob("*/expert_config.json"))


def expert_facts(name: str) -> tuple[Fact, ...]:
    """The facts that an expert of the demo is trained on. Raises KeyError for an unknown expert."""
    return module_facts(random.Random(f"expert-{name}"), EXPERT_KINDS[name], EXPERT_FACTS)
