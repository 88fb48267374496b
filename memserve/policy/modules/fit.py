"""Which module's knowledge a question is about. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memserve.domain import ModuleFit, ModuleVersion

FITS_MAX = 8
"""Modules that a receipt names."""


@dataclass(frozen=True, slots=True)
class FitPolicy:
    """When a module is chosen for a question."""

    least: float = 0.6
    """Cosine of the question to the nearest description or source of the module."""
    least_question: float = 0.8
    """The same to the nearest question that the module answers. It is higher, because questions for other
    things are alike in how they ask (`loadtests.memory_recall`)."""
    lead: float = 0.05
    """How much further over its least cosine it must be than every other module: of two that fit alike, none
    is chosen."""


@dataclass(frozen=True, slots=True)
class Nearest:
    """The text of a module that is nearest to a question."""

    cosine: float
    text: str
    is_question: bool = False
    """Whether it is a question that the module answers."""

    def over(self, policy: FitPolicy) -> float:
        """How far the cosine is over the least one for such a text."""
        return self.cosine - (policy.least_question if self.is_question else policy.least)


def judge_fits(
    versions: Sequence[ModuleVersion], nearest_of: Mapping[str, Sequence[Nearest]], policy: FitPolicy
) -> tuple[ModuleFit, ...]:
    """The modules by how well they fit, best first, at most 8. The best one is chosen if it fits alone.

    nearest_of: by digest, the nearest text of each sort. A version without an entry is not known well enough
    yet, and is not judged.
    """
    nearest = {
        digest: max(texts, key=lambda near: near.over(policy))
        for digest, texts in nearest_of.items()
        if texts
    }
    known = sorted(
        (version for version in versions if version.digest in nearest),
        key=lambda version: (-nearest[version.digest].over(policy), version.module, version.version),
    )
    fits = []
    for place, version in enumerate(known[:FITS_MAX]):
        near = nearest[version.digest]
        second = nearest[known[1].digest].over(policy) if len(known) > 1 else -1.0
        lead = near.over(policy) - second
        chosen = place == 0 and near.over(policy) >= 0 and lead >= policy.lead
        fits.append(
            ModuleFit(
                version.module,
                version.version,
                version.digest,
                near.cosine,
                _reason(place, near, lead, policy),
                chosen,
            )
        )
    return tuple(fits)


def _reason(place: int, near: Nearest, lead: float, policy: FitPolicy) -> str:
    text = near.text if len(near.text) <= 80 else near.text[:79] + "…"
    if near.over(policy) < 0:
        return f"nearest to {text!r}, below {near.cosine - near.over(policy):.2g}"
    if place == 0 and lead < policy.lead:
        return f"nearest to {text!r}, and another module is as near"
    return f"nearest to {text!r}"
