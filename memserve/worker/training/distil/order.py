"""What is distilled into what, and what comes out. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from memserve.domain import DEFAULT_RECIPE, ModuleKind, Recipe
from memserve.worker.training.parent import Parent


@dataclass(frozen=True, slots=True)
class DistilOrder:
    """What is distilled into what."""

    model: Path
    texts: tuple[str, ...]
    """Of the memories, each by itself."""
    kind: ModuleKind = ModuleKind.LORA
    recipe: Recipe = DEFAULT_RECIPE
    seed: int = 0
    budget_s: float = 0.0
    """Processor seconds. 0: what suits the model's size."""
    chat_template: Path | None = None
    recall_template: str = ""
    """The source of another one than the model's."""
    base_digest: str = ""
    block_tokens: int = 32
    """Of a KV block. A cartridge fills whole ones."""
    parent: Parent | None = None
    """The LoRA that is trained on. None: a new module."""
    old_texts: tuple[str, ...] = ()
    """Of the memories that the parent was made of. They are asked again."""

    @property
    def digest(self) -> str:
        """Of all that decides about the result, but for the budget: with more of it a training goes on.

        Raises OSError for a chat template that cannot be read."""
        facts = [
            self.base_digest,
            self.texts,
            self.kind,
            asdict(self.recipe),
            self.seed,
            self.recall_template,
            self.block_tokens,
        ]
        if self.parent is not None:
            facts += [self.parent.digest, self.old_texts]
        if self.chat_template is not None:
            facts.append(self.chat_template.read_text(encoding="utf-8"))
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Distilled:
    """The module."""

    files: dict[str, bytes]
    """By name, with probes.json."""
    report: dict[str, Any]
    """What was trained on and what it cost, as JSON's values."""
