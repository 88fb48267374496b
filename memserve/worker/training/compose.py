"""Make one LoRA out of others, without the base model's weights: everything happens on the changes (deltas)
that the parents make.

What merges is peft's own (`peft.utils.merge_utils`), matrix by matrix; the result equals
`LoraModel.add_weighted_adapter`, which a test holds it to. `s` is a parent's scaling (lora_alpha / r, of
rsLoRA lora_alpha / sqrt(r)), `w` its weight:

| method | peft's | what it does | rank |
|---|---|---|---|
| linear | linear | adds the factors, sqrt(w s) A and sqrt(w s) B: rough, and of parents with one rank only |
the parents' | | cat | cat | puts the factors beside each other: exactly the sum of w s B A | the parents'
together | | svd | svd | the same sum, cut to a lower rank | the highest parent's | | ties | ties_svd | keeps
the largest `density` of each delta, elects a sign for each entry, averages what agrees | the parents'
together | | dare | dare_linear_svd | drops 1 - `density` of each delta at random, scales up the rest, adds |
the parents' together | | core | - | each parent's core whole, the rest interpolated on the sphere
(`core_merge`) | the parents' together | | compress | - | one parent, cut to a lower rank | must be asked for
|

TIES and DARE act on the deltas and not on the factors (peft's plain `ties` and `dare_linear`): an entry of A
has no meaning without B, and parents of different ranks have no factors in common. Of the two demo adapters'
facts plain `ties` keeps at most 0.04, `ties_svd` 0.50. Where the rank is not asked for and the workers' limit
is lower than "together", ties, dare and core take the limit. What does not fit into the rank is lost, and the
loss is measured.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from memserve.errors import InvalidModule
from memserve.memory.modules.kinds.files import canonical_json
from memserve.memory.modules.kinds.lora import CONFIG_FILE, WEIGHTS_FILE

METHODS = ("linear", "cat", "svd", "ties", "dare", "core", "compress")
DEFAULT_DENSITY = {"ties": 0.5, "dare": 0.5, "core": 0.1}
"""The methods that have a density, and what it is where none is given."""
PARENTS_MAX = 8
# The share of a delta's entries that counts as its core when overlaps are reported for a method that isolates
# no cores.
CORE_SHARE = DEFAULT_DENSITY["core"]
# A matrix whose smaller side is larger than this is factorised by subspace iteration: an exact SVD would take
# minutes each.
EXACT_SVD_MAX = 1024
# More columns and more iterations than torch's defaults: what is merged entry by entry has slowly falling
# singular values.
OVERSAMPLING = 32
ITERATIONS = 8
NOT_FINITE = "comes out as NaN or infinite; the parents' values or weights are too large"


@dataclass(frozen=True, slots=True)
class Parent:
    """A LoRA to compose from. folder: holds adapter_config.json and adapter_model.safetensors, as the module
    store keeps them.
    """

    digest: str
    folder: Path
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Progress:
    """Matrices that are done, of all that any parent adapts."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Composed:
    """The files of the result, float32, and how it was made, as JSON's values.

    recipe["measured"]: loss and worst_loss are relative Frobenius errors of what the rank could not hold,
    over all matrices and in the worst; core_overlap is the Jaccard index of the parents' cores, as the mean
    over the matrices and over all entries, a core being `share` of the entries.
    """

    files: dict[str, bytes]
    recipe: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Factors:
    """What a LoRA changes in one matrix: scale * b @ a. a: [rank, in], b: [out, rank], both float32."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float = 1.0

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        return (self.b.shape[0], self.a.shape[1])

    def delta(self) -> torch.Tensor:
        """[out, in]."""
        return self.scale * (self.b @ self.a)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is asked for, checked. rank: of the result."""

    method: str
    weights: tuple[float, ...]
    rank: int
    density: float
    seed: int


def compose(
    parents: Sequence[Parent],
    method: str,
    *,
    rank: int = 0,
    density: float = 0.0,
    seed: int = 0,
    max_rank: int,
) -> Iterator[Progress | Composed]:
    """Yields the progress after every matrix, and last the result. The same arguments, on as many threads,
    give the same bytes.

    rank: of the result; 0: what the method gives. density: see the table above; 0: the method's default.
    seed: of DARE's choice. max_rank: the workers' limit. One matrix is in memory at a time, with a delta of
    every parent; never the model. Raises InvalidModule, at the first step for what is wrong with the
    arguments.
    """
    density = _check(parents, method, rank, density)
    layers = [_read(each) for each in parents]
    paths = sorted(set().union(*layers))
    for path in paths:
        shapes = {each[path].shape for each in layers if path in each}
        if len(shapes) > 1:
            raise InvalidModule(
                "parents",
                f"they are of different base models: {path} is "
                f"{' and '.join(str(list(s)) for s in sorted(shapes))}",
            )
    ranks = [max(factors.rank for factors in each.values()) for each in layers]
    # On the sphere only the weights' shares count.
    sum_of_weights = sum(each.weight for each in parents) if method == "core" else 1.0
    weights = tuple(each.weight / sum_of_weights for each in parents)
    asked = _Asked(method, weights, _result_rank(method, ranks, rank, max_rank), density, seed)

    tensors: dict[str, torch.Tensor] = {}
    losses = _Losses()
    overlaps = _Overlaps()
    yield Progress(0, len(paths))
    for done, path in enumerate(paths, start=1):
        made = _one_matrix(path, [each.get(path) for each in layers], asked, losses, overlaps)
        tensors[f"base_model.model.{path}.lora_A.weight"] = made.a
        tensors[f"base_model.model.{path}.lora_B.weight"] = made.b
        yield Progress(done, len(paths))
    if losses.changes_nothing:
        raise InvalidModule("parents", "they cancel each other out: the result would change nothing")

    recipe: dict[str, Any] = {
        "method": method,
        "parents": [{"digest": each.digest, "weight": each.weight} for each in parents],
        "rank": asked.rank,
        **({"density": density} if density else {}),
        **({"seed": seed} if method == "dare" else {}),
        "measured": {"matrices": len(paths), "loss": losses.overall, "worst_loss": losses.worst},
    }
    if len(parents) > 1:
        recipe["measured"]["core_overlap"] = {
            "share": _core_share(asked),
            "mean": overlaps.mean,
            "overall": overlaps.overall,
        }
    yield Composed({CONFIG_FILE: _config(asked.rank, paths), WEIGHTS_FILE: save(tensors)}, recipe)


def core_mask(delta: torch.Tensor, share: float) -> torch.Tensor:
    """Where the `share` of the entries with the largest magnitude is, bool like `delta`: at least one, none
    that is zero.
    """
    mask = torch.zeros(delta.numel(), dtype=torch.bool)
    mask[delta.abs().flatten().topk(max(1, int(share * delta.numel())), sorted=False).indices] = True
    return mask.view_as(delta) & (delta != 0)


def slerp(first: torch.Tensor, second: torch.Tensor, share: float) -> torch.Tensor:
    """Go the `share` of the way from `first` to `second` along the arc between their directions. Both of one
    shape; it is kept.

    Between directions that are the same or opposite there is no one arc: the way is straight there, as it is
    to or from zero.
    """
    lengths = first.norm() * second.norm()
    cosine = float((first * second).sum() / lengths) if lengths > 0 else 1.0
    angle = math.acos(max(-1.0, min(1.0, cosine)))
    if math.sin(angle) < 1e-4:
        return torch.lerp(first, second, share)
    return (math.sin((1 - share) * angle) * first + math.sin(share * angle) * second) / math.sin(angle)


def core_merge(deltas: Sequence[torch.Tensor], weights: Sequence[float], share: float) -> torch.Tensor:
    """Merge the deltas of one matrix by core-parameter isolation. deltas: each [out, in]; weights: positive.
    Returns [out, in].

    A parent's core is the `share` of its entries with the largest magnitude. Where one core stands alone, its
    values are taken over whole. All other entries, those where cores meet among them, are interpolated
    spherically, parent after parent: with three and more the order matters a little. A parent that does not
    adapt the matrix takes no part in it. Source: Wang et al. 2025, arXiv 2508.21741. It fine-tunes on all
    tasks afterwards; here nothing is trained, so nothing is frozen either.
    """
    cores = [core_mask(each, share) for each in deltas]
    alone = torch.stack(cores).sum(dim=0) == 1
    merged, so_far = deltas[0].masked_fill(alone, 0), weights[0]
    for delta, weight in zip(deltas[1:], weights[1:], strict=True):
        so_far += weight
        merged = slerp(merged, delta.masked_fill(alone, 0), weight / so_far)
    for delta, core in zip(deltas, cores, strict=True):
        merged = torch.where(core & alone, delta, merged)
    return merged


class _Losses:
    """Frobenius norms of what did not fit into the rank, against those of what was to be kept."""

    def __init__(self) -> None:
        self.worst = 0.0
        self._lost = self._whole = self._parents = 0.0

    def add(self, lost: float, whole: float, parents: float) -> None:
        """Of one matrix: what was lost, what was to be kept, what the parents had."""
        self.worst = max(self.worst, lost / whole if whole else 0.0)
        self._lost += lost**2
        self._whole += whole**2
        self._parents += parents**2

    @property
    def overall(self) -> float:
        return math.sqrt(self._lost / self._whole) if self._whole else 0.0

    @property
    def changes_nothing(self) -> bool:
        """Whether all that is left is rounding."""
        return self._whole <= 1e-12 * self._parents


class _Overlaps:
    """Jaccard indices of the parents' cores, over all pairs of parents."""

    def __init__(self) -> None:
        self._each: list[float] = []
        self._shared = self._covered = 0

    def add(self, cores: Sequence[torch.Tensor | None]) -> None:
        """cores: of one matrix, None for a parent that does not adapt it."""
        for one, other in itertools.combinations(cores, 2):
            shared = int((one & other).sum()) if one is not None and other is not None else 0
            covered = sum(int(each.sum()) for each in (one, other) if each is not None) - shared
            if covered:
                self._each.append(shared / covered)
                self._shared += shared
                self._covered += covered

    @property
    def mean(self) -> float:
        """Over the matrices."""
        return sum(self._each) / len(self._each) if self._each else 0.0

    @property
    def overall(self) -> float:
        return self._shared / self._covered if self._covered else 0.0


def _check(parents: Sequence[Parent], method: str, rank: int, density: float) -> float:
    """Returns the density, 0 for a method that has none. Raises InvalidModule."""
    if method not in METHODS:
        raise InvalidModule("method", f"must be one of {', '.join(METHODS)}, not {method[:40]!r}")
    fewest, most = (1, 1) if method == "compress" else (2, PARENTS_MAX)
    if not fewest <= len(parents) <= most:
        raise InvalidModule(
            "parents", f"{method} takes {'one' if most == 1 else f'{fewest} to {most}'}, not {len(parents)}"
        )
    for each in parents:
        if not math.isfinite(each.weight) or each.weight == 0 or (method == "core" and each.weight < 0):
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


def _result_rank(method: str, ranks: Sequence[int], asked: int, max_rank: int) -> int:
    """ranks: the parents'. Raises InvalidModule."""
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
    given = {"linear": ranks[0], "cat": together, "svd": max(ranks)}.get(method, min(together, max_rank))
    if not asked and given > max_rank:
        raise InvalidModule(
            "rank", f"{given} is above the workers' limit of {max_rank}; ask for rank={max_rank}"
        )
    return asked or given


def _read(parent: Parent) -> dict[str, Factors]:
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


def _core_share(asked: _Asked) -> float:
    return asked.density if asked.method == "core" else CORE_SHARE


@torch.inference_mode()
def _one_matrix(
    path: str, found: Sequence[Factors | None], asked: _Asked, losses: _Losses, overlaps: _Overlaps
) -> Factors:
    """Make one matrix of the result, of exactly the asked rank. found: the parents' factors, None where one
    does not adapt it.

    Raises InvalidModule when it is not finite.
    """
    parents = [each for each in found if each is not None]
    weights = [weight for weight, each in zip(asked.weights, found, strict=True) if each is not None]
    deltas = [each.delta() for each in parents]
    if len(found) > 1:
        cores = iter([core_mask(each, _core_share(asked)) for each in deltas])
        overlaps.add([None if each is None else next(cores) for each in found])
    # Every matrix draws from its own seed, and the process's generator is left as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(hashlib.sha256(f"{asked.seed}:{path}".encode()).digest()[:7], "big"))
        merged = _merged(asked.method, parents, deltas, weights, asked.density)
        _check_finite(path, *((merged.a, merged.b) if isinstance(merged, Factors) else (merged,)))
        try:
            made, lost, whole = _factorised(merged, asked.rank)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # it overflowed on the way
            raise InvalidModule(path, NOT_FINITE) from None
    _check_finite(path, made.a, made.b, torch.tensor(whole))
    losses.add(
        lost,
        whole,
        max(abs(weight) * float(each.norm()) for weight, each in zip(weights, deltas, strict=True)),
    )
    return made


def _check_finite(path: str, *tensors: torch.Tensor) -> None:
    if not all(each.isfinite().all() for each in tensors):
        raise InvalidModule(path, NOT_FINITE)


def _merged(
    method: str,
    parents: Sequence[Factors],
    deltas: Sequence[torch.Tensor],
    weights: Sequence[float],
    density: float,
) -> Factors | torch.Tensor:
    """The merged matrix, as factors or whole."""
    # Importing peft takes seconds, and whoever only names a Parent does not need it.
    from peft.utils.merge_utils import dare_linear, task_arithmetic, ties

    if method == "core":
        return core_merge(deltas, weights, density)
    if method in ("ties", "dare"):
        merge = ties if method == "ties" else dare_linear
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The density")  # a density of 1 is meant
            whole: torch.Tensor = merge(list(deltas), torch.tensor(weights), density)
        return whole
    scales = [weight * each.scale for weight, each in zip(weights, parents, strict=True)]
    if method == "linear":
        roots = torch.tensor([math.sqrt(abs(each)) for each in scales])
        signs = torch.tensor([math.copysign(1.0, each) for each in scales])
        return Factors(
            task_arithmetic([each.a for each in parents], roots * signs),
            task_arithmetic([each.b for each in parents], roots),
        )
    a = torch.cat([scale * each.a for scale, each in zip(scales, parents, strict=True)])
    return Factors(a, torch.cat([each.b for each in parents], dim=1))


def _factorised(merged: Factors | torch.Tensor, rank: int) -> tuple[Factors, float, float]:
    """The best factors of exactly this rank, the Frobenius norm of what they leave out, and that of the
    whole.

    The singular values are shared evenly between the factors, so that neither is lost in a narrower dtype.
    A lower rank is filled up with zeros.
    """
    if isinstance(merged, Factors):
        # b a = Qb (Rb Ra^T) Qa^T: the SVD is of a small matrix, and exact.
        q_b, r_b = torch.linalg.qr(merged.b.double())
        q_a, r_a = torch.linalg.qr(merged.a.double().T)
        u, values, vh = torch.linalg.svd(merged.scale * r_b @ r_a.T, full_matrices=False)
        whole = float(values.norm())
        if merged.rank <= rank:
            return _filled_up(replace(merged, a=merged.a * merged.scale, scale=1.0), rank), 0.0, whole
        u, v, lost = q_b @ u, q_a @ vh.T, float(values[rank:].norm())
    else:
        whole = float(torch.linalg.vector_norm(merged, dtype=torch.float64))
        if min(merged.shape) <= EXACT_SVD_MAX:
            u, values, vh = torch.linalg.svd(merged, full_matrices=False)
            v = vh.T
        else:
            u, values, v = torch.svd_lowrank(
                merged, q=min(rank + OVERSAMPLING, *merged.shape), niter=ITERATIONS
            )
    roots = values[:rank].sqrt()
    made = Factors((v[:, :rank] * roots).T.float().contiguous(), (u[:, :rank] * roots).float().contiguous())
    if not isinstance(merged, Factors):
        lost = float(torch.linalg.vector_norm(merged - made.delta(), dtype=torch.float64))
    return _filled_up(made, rank), lost, whole


def _filled_up(factors: Factors, rank: int) -> Factors:
    missing = rank - factors.rank
    pad = torch.nn.functional.pad
    return Factors(
        pad(factors.a, (0, 0, 0, missing)).contiguous(),
        pad(factors.b, (0, missing)).contiguous(),
        factors.scale,
    )


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
