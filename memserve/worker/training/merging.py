"""How one matrix of several LoRAs becomes one, by the methods of `compose`.

The arithmetic is peft's own (`peft.utils.merge_utils`), matrix by matrix. The result equals that of
`LoraModel.add_weighted_adapter`, which a test holds it to. `s` is a parent's scaling (lora_alpha / r, for
rsLoRA lora_alpha / sqrt(r)), `w` its weight, and `d` the density.

    method    peft's           rank                   the merged matrix
    linear    linear           the parents'           sum of sqrt(w s) A times sum of sqrt(w s) B: rough, and
                                                      only for parents with one rank
    cat       cat              the parents' together  sum of w s B A, exactly: the factors beside each other
    svd       svd              the highest parent's   the same sum, cut to a lower rank
    ties      ties_svd         the parents' together  the largest d of each delta, a sign elected for each
                                                      entry, the average of the values with that sign
    dare      dare_linear_svd  the parents' together  1 - d of each delta dropped at random, the rest scaled
                                                      up and added
    core      -                the parents' together  each parent's core whole, the rest interpolated on the
                                                      sphere (`core_merge`)
    compress  -                must be asked for      one parent, cut to a lower rank

TIES and DARE act on the deltas. peft's plain `ties` and `dare_linear` act on the factors; but an entry of A
has no meaning without B, and parents of different ranks have no factors in common. Of the two demo adapters'
facts plain `ties` keeps at most 0.04, `ties_svd` 0.50. Where the rank is not asked for and the workers' limit
is lower than "together", ties, dare and core take the limit.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch

from memserve.worker.training.factors import Factors

METHODS = ("linear", "cat", "svd", "ties", "dare", "core", "compress")
DEFAULT_DENSITY = {"ties": 0.5, "dare": 0.5, "core": 0.1}
"""The methods that have a density, and its default."""


def merged_matrix(
    method: str,
    parents: Sequence[Factors],
    deltas: Sequence[torch.Tensor],
    weights: Sequence[float],
    density: float,
) -> Factors | torch.Tensor:
    """The merged matrix, as factors where the method keeps them, else whole: [out, in].

    deltas: the parents', each [out, in].
    """
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
    scales = [weight * parent.scale for weight, parent in zip(weights, parents, strict=True)]
    if method == "linear":
        roots = torch.tensor([math.sqrt(abs(scale)) for scale in scales])
        signs = torch.tensor([math.copysign(1.0, scale) for scale in scales])
        return Factors(
            task_arithmetic([parent.a for parent in parents], roots * signs),
            task_arithmetic([parent.b for parent in parents], roots),
        )
    a = torch.cat([scale * parent.a for scale, parent in zip(scales, parents, strict=True)])
    return Factors(a, torch.cat([parent.b for parent in parents], dim=1))


def core_mask(delta: torch.Tensor, share: float) -> torch.Tensor:
    """Where the `share` of the entries with the largest magnitude is, bool like `delta`.

    At least one entry, and none that is zero.
    """
    mask = torch.zeros(delta.numel(), dtype=torch.bool)
    mask[delta.abs().flatten().topk(max(1, int(share * delta.numel())), sorted=False).indices] = True
    return mask.view_as(delta) & (delta != 0)


def slerp(first: torch.Tensor, second: torch.Tensor, share: float) -> torch.Tensor:
    """Go the `share` of the way from `first` to `second` along the arc between their directions.

    Both have one shape, which the result has too. Between directions that are the same or opposite there is
    no single arc: the way is straight there, and to or from zero.
    """
    lengths = first.norm() * second.norm()
    cosine = float((first * second).sum() / lengths) if lengths > 0 else 1.0
    angle = math.acos(max(-1.0, min(1.0, cosine)))
    if math.sin(angle) < 1e-4:
        return torch.lerp(first, second, share)
    return (math.sin((1 - share) * angle) * first + math.sin(share * angle) * second) / math.sin(angle)


def core_merge(deltas: Sequence[torch.Tensor], weights: Sequence[float], share: float) -> torch.Tensor:
    """Merge the deltas of one matrix by core-parameter isolation. Returns [out, in].

    deltas: each [out, in]. weights: positive.

    A parent's core is the `share` of its entries with the largest magnitude. Where a core stands alone, its
    values are taken over whole. All other entries are interpolated spherically, parent after parent; entries
    where cores meet are among them. With three parents and more the order matters a little. A parent that
    does not adapt the matrix takes no part in it.

    Source: Wang et al. 2025, arXiv 2508.21741. It fine-tunes on all tasks afterwards. Here nothing is
    trained, so nothing is frozen either.
    """
    cores = [core_mask(delta, share) for delta in deltas]
    alone = torch.stack(cores).sum(dim=0) == 1
    merged, weight_so_far = deltas[0].masked_fill(alone, 0), weights[0]
    for delta, weight in zip(deltas[1:], weights[1:], strict=True):
        weight_so_far += weight
        merged = slerp(merged, delta.masked_fill(alone, 0), weight / weight_so_far)
    for delta, core in zip(deltas, cores, strict=True):
        merged = torch.where(core & alone, delta, merged)
    return merged
