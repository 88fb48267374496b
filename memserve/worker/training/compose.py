"""Make one LoRA out of others, without the base model's weights.

Everything happens on the changes (deltas) that the parents make, one matrix at a time. `merging.py` has the
methods. The merged matrix is cut to the asked rank; what does not fit into the rank is lost, and the loss is
measured.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save

from memserve.errors import InvalidModule
from memserve.memory.modules.kinds.files import canonical_json
from memserve.memory.modules.kinds.lora import CONFIG_FILE, WEIGHTS_FILE
from memserve.worker.training.factors import Factors, factorised
from memserve.worker.training.measures import Losses, Overlaps
from memserve.worker.training.merging import DEFAULT_DENSITY, core_mask, merged_matrix
from memserve.worker.training.parent import Parent
from memserve.worker.training.parents import (
    check_shapes,
    checked_density,
    read_parent,
    result_rank,
)

# The share of a delta's entries that counts as its core, for methods that isolate no cores.
CORE_SHARE = DEFAULT_DENSITY["core"]
NOT_FINITE = "comes out as NaN or infinite; the parents' values or weights are too large"


@dataclass(frozen=True, slots=True)
class Progress:
    """Matrices that are done, of all that any parent adapts."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Composed:
    """A composition."""

    files: dict[str, bytes]
    """A LoRA in float32, by file name."""
    recipe: dict[str, Any]
    """How it was made, as JSON's values.

    recipe["measured"]: loss and worst_loss are relative Frobenius errors of what the rank could not hold,
    over all matrices and in the worst. core_overlap is the Jaccard index of the parents' cores, as the mean
    over the matrices and over all entries; a core is `share` of the entries.
    """


@dataclass(frozen=True, slots=True)
class _Order:
    """What is asked for, checked."""

    method: str
    weights: tuple[float, ...]
    rank: int
    """Of the result."""
    density: float
    seed: int

    @property
    def core_share(self) -> float:
        return self.density if self.method == "core" else CORE_SHARE


def compose(
    parents: Sequence[Parent],
    method: str,
    *,
    rank: int = 0,
    density: float = 0.0,
    seed: int = 0,
    max_rank: int,
) -> Iterator[Progress | Composed]:
    """Yields the progress after every matrix, and last the result.

    rank: of the result; 0: what the method gives. density: see `merging.py`; 0: the method's default. seed:
    of DARE's choice. max_rank: the workers' limit.

    The same arguments, on as many threads, give the same bytes. One matrix is in memory at a time, with a
    delta of every parent; never the model. Raises InvalidModule, at the first step for arguments that cannot
    be.
    """
    density = checked_density(parents, method, rank, density)
    layers = [read_parent(parent) for parent in parents]
    paths = check_shapes(layers)
    ranks = [max(factors.rank for factors in layer.values()) for layer in layers]
    # On the sphere only the weights' shares count.
    sum_of_weights = sum(parent.weight for parent in parents) if method == "core" else 1.0
    weights = tuple(parent.weight / sum_of_weights for parent in parents)
    order = _Order(method, weights, result_rank(method, ranks, rank, max_rank), density, seed)

    tensors: dict[str, torch.Tensor] = {}
    losses = Losses()
    overlaps = Overlaps()
    yield Progress(0, len(paths))
    for done, path in enumerate(paths, start=1):
        factors = _one_matrix(path, [layer.get(path) for layer in layers], order, losses, overlaps)
        tensors[f"base_model.model.{path}.lora_A.weight"] = factors.a
        tensors[f"base_model.model.{path}.lora_B.weight"] = factors.b
        yield Progress(done, len(paths))
    if losses.changes_nothing:
        raise InvalidModule("parents", "they cancel each other out: the result would change nothing")

    recipe: dict[str, Any] = {
        "method": method,
        "parents": [{"digest": parent.digest, "weight": parent.weight} for parent in parents],
        "rank": order.rank,
        **({"density": density} if density else {}),
        **({"seed": seed} if method == "dare" else {}),
        "measured": {"matrices": len(paths), "loss": losses.overall, "worst_loss": losses.worst},
    }
    if len(parents) > 1:
        recipe["measured"]["core_overlap"] = {
            "share": order.core_share,
            "mean": overlaps.mean,
            "overall": overlaps.overall,
        }
    yield Composed({CONFIG_FILE: _config(order.rank, paths), WEIGHTS_FILE: save(tensors)}, recipe)


@torch.inference_mode()
def _one_matrix(
    path: str,
    by_parent: Sequence[Factors | None],
    order: _Order,
    losses: Losses,
    overlaps: Overlaps,
) -> Factors:
    """Make one matrix of the result, of exactly the asked rank.

    by_parent: the parents' factors, None for a parent that does not adapt the matrix. Raises InvalidModule
    when the matrix is not finite.
    """
    parents = [factors for factors in by_parent if factors is not None]
    weights = [
        weight for weight, factors in zip(order.weights, by_parent, strict=True) if factors is not None
    ]
    deltas = [factors.delta() for factors in parents]
    if len(by_parent) > 1:
        cores = iter([core_mask(delta, order.core_share) for delta in deltas])
        overlaps.add([None if factors is None else next(cores) for factors in by_parent])
    # Every matrix draws from its own seed, and the process's generator is left as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(hashlib.sha256(f"{order.seed}:{path}".encode()).digest()[:7], "big"))
        merged = merged_matrix(order.method, parents, deltas, weights, order.density)
        _check_finite(path, *((merged.a, merged.b) if isinstance(merged, Factors) else (merged,)))
        try:
            result, lost, whole = factorised(merged, order.rank)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # it overflowed on the way
            raise InvalidModule(path, NOT_FINITE) from None
    _check_finite(path, result.a, result.b, torch.tensor(whole))
    largest_parent = max(
        abs(weight) * float(delta.norm()) for weight, delta in zip(weights, deltas, strict=True)
    )
    losses.add(lost, whole, largest_parent)
    return result


def _check_finite(path: str, *tensors: torch.Tensor) -> None:
    if not all(tensor.isfinite().all() for tensor in tensors):
        raise InvalidModule(path, NOT_FINITE)


def _config(rank: int, paths: Sequence[str]) -> bytes:
    """The canonical adapter_config.json, in the form of the module store's."""
    return canonical_json(
        {
            "base_model_name_or_path": "",
            "bias": "none",
            "lora_alpha": rank,
            "peft_type": "LORA",
            "r": rank,
            "target_modules": sorted({path.rsplit(".", 1)[-1] for path in paths}),
            "task_type": "CAUSAL_LM",
            "use_rslora": False,
        }
    )
