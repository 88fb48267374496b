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
    """Cosine of the question to the nearest text that says what the module knows."""
    lead: float = 0.05
    """How much nearer it must be than every other module: of two that fit alike, none is chosen."""


@dataclass(frozen=True, slots=True)
class Nearest:
    """The text of a module that is nearest to a question."""

    cosine: float
    text: str


def judge_fits(
    versions: Sequence[ModuleVersion], nearest: Mapping[str, Nearest], policy: FitPolicy
) -> tuple[ModuleFit, ...]:
    """The modules by how well they fit, best first, at most 8. The best one is chosen if it fits alone.

    nearest: by digest. A version without an entry is not known well enough yet, and is not judged.
    """
    known = sorted(
        (version for version in versions if version.digest in nearest),
        key=lambda version: (-nearest[version.digest].cosine, version.module, version.version),
    )
    fits = []
    for place, version in enumerate(known[:FITS_MAX]):
        near = nearest[version.digest]
        lead = near.cosine - nearest[known[1].digest].cosine if len(known) > 1 else near.cosine
        chosen = place == 0 and near.cosine >= policy.least and lead >= policy.lead
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
    if near.cosine < policy.least:
        return f"nearest to {text!r}, below {policy.least:g}"
    if place == 0 and lead < policy.lead:
        return f"nearest to {text!r}, and another module is as near"
    return f"nearest to {text!r}"
