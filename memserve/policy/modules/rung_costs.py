"""What each rung costs a namespace, from what a gateway knows of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from memserve.domain.ladder import Rung, RungCost
from memserve.domain.modules import ModuleKind, ModuleVersion
from memserve.policy.routing.costs import EngineCosts

LOAD_S = 0.3
"""Processor seconds for files that are kept."""
KIND_OF_RUNG = {Rung.CARTRIDGE: ModuleKind.CARTRIDGE, Rung.LORA: ModuleKind.LORA}
CARTRIDGE_SHARE = 0.5
"""Positions of a cartridge that is not made yet, for each token of the memories."""


@dataclass(frozen=True, slots=True)
class Engine:
    """What the workers and the model say."""

    costs: EngineCosts
    kv_token_bytes: int
    lora_bytes: int
    """Of a LoRA that is not made yet; as large as rank 16 makes it."""
    train_s: Mapping[Rung, float]
    """Processor seconds of a training that has not been measured."""


@dataclass(frozen=True, slots=True)
class NamespaceFigures:
    """What a namespace is made of."""

    pinned_tokens: int
    """Of the pinned passages, in every prompt. 0: nothing is pinned."""
    passage_tokens: int
    """Of the passages that an answer recalls beside them."""
    memory_tokens: int
    """Of all memories."""
    is_warm: bool = False
    """Its prefix is kept warm."""
    versions: Mapping[Rung, ModuleVersion] = field(default_factory=dict)
    """The newest version of each that was made of what the memories say now."""
    trained: frozenset[Rung] = frozenset()
    """Rungs whose training has been begun, and counted."""
    refused: frozenset[Rung] = frozenset()
    """Rungs that cannot be had now."""


def costs_of(of: NamespaceFigures, engine: Engine) -> dict[Rung, RungCost]:
    """Of the rungs that the namespace can have.

    A module answers in place of recalled passages. Pinned passages stay in the prompt on every rung, so that
    their KV is kept warm on all but text.
    """
    prefix_bytes = of.pinned_tokens * engine.kv_token_bytes
    prompt_tokens = of.pinned_tokens + of.passage_tokens
    make_prefix_s = engine.costs.prefill_s(0, of.pinned_tokens)
    step_s = engine.costs.step_s
    text_right = next((share for version in of.versions.values() if (share := teacher_share(version))), None)
    costs = {
        Rung.TEXT: RungCost(
            prompt_tokens, step_s + engine.costs.prefill_s(0, prompt_tokens), 0, 0.0, text_right
        )
    }
    if of.pinned_tokens:
        warm_s = step_s + engine.costs.prefill_s(of.pinned_tokens, prompt_tokens)
        costs[Rung.PREFIX] = RungCost(of.passage_tokens, warm_s, prefix_bytes, make_prefix_s)
    warming_s = 0.0 if of.is_warm else make_prefix_s
    for rung in (Rung.CARTRIDGE, Rung.LORA):
        if rung in of.refused or rung not in engine.train_s:
            continue
        version = of.versions.get(rung)
        if version is not None:
            size, make_s, right = version.size_bytes, LOAD_S, recall_share(version)
        else:
            positions = int(CARTRIDGE_SHARE * of.memory_tokens)
            size = positions * engine.kv_token_bytes if rung is Rung.CARTRIDGE else engine.lora_bytes
            make_s, right = (0.0 if rung in of.trained else engine.train_s[rung]), None
        costs[rung] = RungCost(0, step_s, prefix_bytes + size, make_s + warming_s, right)
    return costs


def recall_share(version: ModuleVersion) -> float | None:
    """What the gate saw it answer right of what it was taught. None: it was not asked."""
    figures = version.gate.figures if version.gate is not None else ()
    return next((figure.module for figure in figures if figure.name == "recall"), None)


def teacher_share(version: ModuleVersion) -> float | None:
    """What the served model answered right with the memories in its prompt. None: not known."""
    try:
        share = json.loads(version.recipe)["measured"]["teacher_share"]
    except (ValueError, LookupError, TypeError):
        return None
    return float(share) if isinstance(share, int | float) and 0 <= share <= 1 else None
