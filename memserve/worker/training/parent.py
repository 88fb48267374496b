"""A LoRA that another one is made of. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Parent:
    """A LoRA to compose from, or to train on."""

    digest: str
    folder: Path
    """Holds adapter_config.json and adapter_model.safetensors, as the module store keeps them."""
    weight: float = 1.0
