"""Where a training stands, in one file that is replaced as a whole."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FILE = "training.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(slots=True)
class Standing:
    """What has been done."""

    step: int = 0
    """Steps that were taken."""
    cpu_s: float = 0.0
    """Of all processes that worked on it."""
    asked: int = 0
    """Facts that were asked."""
    asked_old: int = 0
    """Of what a parent was made of."""
    tokens: int = 0
    """That were trained on."""
    medians: list[float] = field(default_factory=list)
    """Of the last steps: the median loss of the values' tokens."""
    kept: list[float] = field(default_factory=list)
    """Of the last steps: how far the replayed answers were from the base's, in nats."""
    fall_from: int | None = None
    """The step from which the learning rate falls, where it falls early."""
    resumed: int = 0
    """How often a process has gone on with it."""


def save_checkpoint(
    folder: Path,
    order: str,
    standing: Standing,
    weights: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    """order: the digest of what is trained. Raises OSError."""
    tensors: dict[str, Tensor] = {}
    for name, weight in weights.items():
        tensors[name] = weight.detach().contiguous()
        for moment in _MOMENTS:
            tensors[f"{name}:{moment}"] = optimizer.state[weight][moment].contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{FILE}.partial"
    save_file(tensors, partial, metadata={"order": order, "standing": json.dumps(asdict(standing))})
    with partial.open("rb") as stream:
        os.fsync(stream.fileno())
    partial.replace(folder / FILE)


def load_checkpoint(
    folder: Path, order: str, weights: Mapping[str, Tensor], optimizer: torch.optim.AdamW
) -> Standing | None:
    """Set weights and optimizer as they were.

    None: there is no checkpoint of this order, or none that can be read; nothing is changed.
    """
    try:
        with safe_open(folder / FILE, framework="pt") as file:
            about = file.metadata() or {}
            if about.get("order") != order:
                return None
            standing = Standing(**json.loads(about["standing"]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
    wanted = {name: weight.shape for name, weight in weights.items()}
    wanted |= {f"{name}:{moment}": shape for name, shape in wanted.items() for moment in _MOMENTS}
    if {name: tensor.shape for name, tensor in tensors.items()} != wanted:
        return None
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(tensors[name])
            optimizer.state[weight] = {
                "step": torch.tensor(float(standing.step)),
                **{moment: tensors[f"{name}:{moment}"] for moment in _MOMENTS},
            }
    standing.resumed += 1
    return standing
