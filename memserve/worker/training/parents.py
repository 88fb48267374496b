"""What a composition is made from: its parents, and what they and the method allow."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from safetensors import SafetensorError, safe_open

from memserve.errors import InvalidModule
from memserve.memory.modules.kinds.lora import CONFIG_FILE, WEIGHTS_FILE
from memserve.worker.training.factors import Factors
from memserve.worker.training.merging import DEFAULT_DENSITY, METHODS
from memserve.worker.training.parent import Parent

MAX_PARENTS = 8


def read_parent(parent: Parent) -> dict[str, Factors]:
    """Path of an adapted matrix to its factors. Raises InvalidModule."""
    layers: dict[str, Factors] = {}
    try:
        config = json.loads((parent.folder / CONFIG_FILE).read_bytes())
        with safe_open(parent.folder / WEIGHTS_FILE, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # a safe_open is no mapping
                if name.endswith(".lora_A.weight"):
                    stem = name.removesuffix("lora_A.weight")
                    a, b = (file.get_tensor(f"{stem}{side}.weight").float() for side in ("lora_A", "lora_B"))
                    if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
                        raise ValueError(f"{name} and its other side do not fit")
                    scale = config["lora_alpha"] / (
                        math.sqrt(a.shape[0]) if config.get("use_rslora") else a.shape[0]
                    )
                    layers[stem.removeprefix("base_model.model.").removesuffix(".")] = Factors(a, b, scale)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise InvalidModule(
            "parents", f"{parent.digest[:12]} cannot be read as a LoRA ({type(error).__name__})"
        ) from None
    if not layers:
        raise InvalidModule("parents", f"{parent.digest[:12]} holds no LoRA tensors")
    return layers


def checked_density(parents: Sequence[Parent], method: str, rank: int, density: float) -> float:
    """Check what is asked for. Returns the density, 0 for a method that has none. Raises InvalidModule."""
    if method not in METHODS:
        raise InvalidModule("method", f"must be one of {', '.join(METHODS)}, not {method[:40]!r}")
    fewest, most = (1, 1) if method == "compress" else (2, MAX_PARENTS)
    if not fewest <= len(parents) <= most:
        raise InvalidModule(
            "parents", f"{method} takes {'one' if most == 1 else f'{fewest} to {most}'}, not {len(parents)}"
        )
    for parent in parents:
        weight = parent.weight
        if not math.isfinite(weight) or weight == 0 or (method == "core" and weight < 0):
            raise InvalidModule(
                "parents.weight",
                f"must be a {'number above' if method == 'core' else 'finite number other than'} 0",
            )
    if rank < 0:
        raise InvalidModule("rank", "must be 1 or more, or 0 for what the method gives")
    if density == 0:
        return DEFAULT_DENSITY.get(method, 0.0)
    if not 0 < density <= 1:
        raise InvalidModule("density", "must be above 0 and at most 1")
    if method not in DEFAULT_DENSITY:
        raise InvalidModule("density", f"means nothing to {method}; leave it out")
    return density


def check_shapes(layers: Sequence[dict[str, Factors]]) -> list[str]:
    """Returns the paths of all matrices that a parent adapts, sorted.

    layers: from `read_parent`, for each parent. Raises InvalidModule when two parents disagree on a shape.
    """
    paths = sorted(set().union(*layers))
    for path in paths:
        shapes = {layer[path].shape for layer in layers if path in layer}
        if len(shapes) > 1:
            raise InvalidModule(
                "parents",
                f"they are of different base models: {path} is "
                f"{' and '.join(str(list(shape)) for shape in sorted(shapes))}",
            )
    return paths


def result_rank(method: str, ranks: Sequence[int], asked: int, max_rank: int) -> int:
    """The rank of the result. Raises InvalidModule for a rank that the method cannot give.

    ranks: the parents'. asked: 0 for what the method gives. max_rank: the workers' limit; ties, dare and core
    take it where their own rank is higher.
    """
    together = sum(ranks)
    if asked > max_rank:
        raise InvalidModule(
            "rank", f"{asked} is above the workers' limit of {max_rank}; ask for rank={max_rank} or less"
        )
    if method == "compress":
        if not 0 < asked < ranks[0]:
            raise InvalidModule(
                "rank",
                f"must be from 1 to {ranks[0] - 1}: the parent has rank {ranks[0]}, and compress lowers it",
            )
        return asked
    if method == "linear":
        if len(set(ranks)) > 1:
            raise InvalidModule(
                "parents",
                f"linear adds factors of one rank, and theirs are {', '.join(map(str, ranks))}; use "
                "svd or cat",
            )
        if asked > ranks[0]:
            raise InvalidModule("rank", f"linear gives rank {ranks[0]}, and no more is in it; use svd or cat")
    if method in ("cat", "svd") and asked > together:
        raise InvalidModule("rank", f"{method} of these parents has rank {together}, and no more is in it")
    own = {"linear": ranks[0], "cat": together, "svd": max(ranks)}.get(method, min(together, max_rank))
    if not asked and own > max_rank:
        raise InvalidModule(
            "rank", f"{own} is above the workers' limit of {max_rank}; ask for rank={max_rank}"
        )
    return asked or own
