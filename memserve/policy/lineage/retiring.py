"""What becomes of modules when a memory is erased that they were made of."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from memserve.domain import Alias, AliasChange, ModuleVersion, TrafficShare
from memserve.domain.lineage import MemoryVersionName, MovedAlias, Retraining, memories_of
from memserve.policy.modules.recipes import MAX_BUDGET_S, SEED_MAX

NO_TARGETS: tuple[TrafficShare, ...] = ()


def moved_alias(
    module: str,
    alias: Alias,
    retired: Collection[int],
    versions: Sequence[ModuleVersion],
    history: Sequence[AliasChange],
) -> MovedAlias | None:
    """Where an alias points without the retired versions. None: it points at none of them.

    1. A split keeps its other versions, where one of them has passed the gate.
    2. Else the alias goes back to what it last was without a retired version.
    3. Else it goes to the newest version left that has passed the gate.
    4. Else it is dropped: nothing is served that nobody has promoted or measured.

    versions: of the module, those that are retired too. history: of the alias, oldest first.
    """
    before = alias.targets
    if not any(target.version in retired for target in before):
        return None

    def move(after: tuple[TrafficShare, ...], why: str) -> MovedAlias:
        return MovedAlias(module, alias.name, before, after, why, alias.revision)

    left = {version.version: version for version in versions if version.version not in retired}
    passed = {number for number, version in left.items() if version.gate is not None and version.gate.passed}
    rest = tuple(target for target in before if target.version in left)
    if any(target.version in passed for target in rest):
        return move(rest, "its other versions keep their weights")
    for change in reversed(history):
        if change.targets and all(target.version in left for target in change.targets):
            why = f"back to what it was at revision {change.revision}"
            return move(change.targets, why)
    if passed:
        return move((TrafficShare(max(passed), 1.0),), "the newest that has passed the gate")
    return move(NO_TARGETS, "none is left that was promoted or measured")


def deletion_order(versions: Iterable[ModuleVersion]) -> list[ModuleVersion]:
    """What was composed goes before what it was composed of, and newer versions before older ones."""
    return sorted(versions, key=lambda version: (version.created_s, version.version), reverse=True)


def retrainings(
    retired: Sequence[ModuleVersion],
    is_erased: Callable[[MemoryVersionName], bool],
    now_s: float,
) -> list[Retraining]:
    """One for each module that was distilled: of what is left of its newest retired version.

    A composed version names no memories of its own. It is composed again by hand, once its parents are there.
    """
    newest: dict[str, ModuleVersion] = {}
    for version in retired:
        if memories_of(version.sources):
            known = newest.get(version.module)
            if known is None or version.version > known.version:
                newest[version.module] = version
    queued = []
    for version in newest.values():
        names = [name for name in memories_of(version.sources) if not is_erased(name)]
        made = recipe_of(version)
        queued.append(
            Retraining(
                module=version.module,
                kind=str(version.kind),
                retired=version.reference,
                memories=tuple(dict.fromkeys(name.memory for name in names)),
                queued_s=now_s,
                seed=_whole(made.get("seed")),
                budget_s=_seconds(made.get("budget_s")),
            )
        )
    return queued


def retrained_by(
    entry: Retraining,
    versions: Sequence[ModuleVersion],
    is_erased: Callable[[MemoryVersionName], bool],
) -> str:
    """The version of the module that was made since, without what was erased. Empty: none."""
    newer = [
        version
        for version in versions
        if version.module == entry.module
        and version.created_s > entry.queued_s
        and memories_of(version.sources)
        and not any(map(is_erased, memories_of(version.sources)))
    ]
    return max(newer, key=lambda version: version.version).reference if newer else ""


def recipe_of(version: ModuleVersion) -> Mapping[str, object]:
    """A version's recipe as values; empty where it is a text for people."""
    try:
        read = json.loads(version.recipe)
    except ValueError:
        return {}
    return read if isinstance(read, dict) else {}


def _whole(value: object) -> int:
    """0 for what is no seed. A publisher may write anything."""
    if not isinstance(value, int) or isinstance(value, bool):
        return 0
    return value if 0 <= value <= SEED_MAX else 0


def _seconds(value: object) -> float:
    """0 for what is no budget."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return 0.0
    return float(value) if 0 <= value <= MAX_BUDGET_S else 0.0
