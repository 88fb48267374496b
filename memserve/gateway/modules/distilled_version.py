"""What a distilled version keeps about itself: its sources, and its recipe with the job that made it."""

from __future__ import annotations

import json
from dataclasses import asdict

from memserve.domain import Distillation, ModuleVersion
from memserve.domain.lineage import MemoryVersionName, source_of
from memserve.errors import InvalidField
from memserve.gateway.modules.continuing import Parent
from memserve.memory.modules.memory import SOURCE_MAX_BYTES, SOURCES_MAX
from memserve.policy.modules.selection import Selection


def names_of(selection: Selection) -> list[MemoryVersionName]:
    return [MemoryVersionName(each.namespace, each.memory_id, each.version) for each in selection.memories]


def sources_of(selection: Selection, parent: Parent | None) -> tuple[str, ...]:
    """The memories with their versions: one a source, as many as a version keeps.

    Raises InvalidField for more than it keeps, before anything is trained.
    """
    named = [source_of(each) for each in names_of(selection)]
    named = list(dict.fromkeys((*named, *(parent.sources if parent else ()))))
    lines = tuple(named) if len(named) <= SOURCES_MAX else tuple(_joined(named))
    if any(len(line.encode()) > SOURCE_MAX_BYTES for line in lines):
        raise InvalidField(
            "memories",
            f"are {len(named)}, with those of the parent; a version keeps their names in {SOURCES_MAX} lines "
            f"of {SOURCE_MAX_BYTES} bytes. Distil fewer",
        )
    return lines


def _joined(named: list[str]) -> list[str]:
    """Several of one line, so that all fit."""
    each = -(-len(named) // SOURCES_MAX)
    return [" ".join(named[start : start + each]) for start in range(0, len(named), each)]


def recipe_text(
    asked: Distillation,
    job_id: str,
    selection: Selection,
    report: dict[str, object],
    parent: Parent | None,
) -> str:
    continued = {"from": parent.version.reference, "asked_again": len(parent.texts)} if parent else {}
    return json.dumps(
        {
            "method": "distil",
            "kind": str(asked.kind),
            "recipe": asdict(asked.recipe),
            "seed": asked.seed,
            "budget_s": asked.budget_s,
            **continued,
            "memories": len(selection.memories),
            "left_out": len(selection.left_out),
            "measured": {**report, "without_question": len(_places(report))},
            "job": job_id,
        }
    )


def job_of(version: ModuleVersion) -> str:
    """The id of the job that made the version. Empty: none did."""
    try:
        recipe = json.loads(version.recipe)
    except ValueError:
        return ""
    return str(recipe.get("job", "")) if isinstance(recipe, dict) else ""


def _places(report: dict[str, object]) -> list[object]:
    places = report.get("without_question")
    return places if isinstance(places, list) else []
