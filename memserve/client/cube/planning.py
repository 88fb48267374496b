"""What an import has to do: pure comparisons of a cube with what a gateway has."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from memserve.client.cube.layout import MANIFEST, module_entry
from memserve.client.cube.lines import Known, MemoryLine
from memserve.client.cube.values import (
    AliasOutcome,
    Cube,
    CubeAlias,
    CubeRefused,
    MemoriesOutcome,
    VersionOutcome,
)
from memserve.client.values import Status
from memserve.domain import Alias, ItemRefusal, Module, ModuleVersion

REFUSALS_SHOWN = 20
SAME_SHARE = 1e-9


def check_base(cube: Cube, status: Status) -> None:
    """Raises CubeRefused where modules of the cube were made for another base model than the served one."""
    served = status.model_digest
    for version in cube.versions:
        if served and version.base_digest and version.base_digest != served:
            raise CubeRefused(
                MANIFEST,
                f"{version.reference} was made for the base model {version.base_digest[:12]} "
                f"({cube.manifest.model}), and the gateway serves {served[:12]} ({status.model}); "
                "--without-modules imports the memories alone",
            )


def check_kinds(cube: Cube, modules: Mapping[str, Module]) -> None:
    """Raises CubeRefused where the gateway has a module of that name and of another kind."""
    for module in cube.modules:
        here = modules.get(module.name)
        if here is not None and here.kind != module.kind:
            raise CubeRefused(
                module_entry(module.name),
                f"is a {module.kind}, and the gateway's is a {here.kind}",
            )


def compare_memories(lines: Iterable[MemoryLine], known: Known) -> MemoriesOutcome:
    """What becomes of the cube's memories beside those that are known."""
    new = same = refused = 0
    refusals: list[ItemRefusal] = []
    for line in lines:
        is_same = known.has_same(line)
        new += is_same is None
        same += is_same is True
        if is_same is False:
            refused += 1
            if len(refusals) < REFUSALS_SHOWN:
                name = f"{line.namespace}/{line.memory_id}"
                why = f"{name[:200]} has another history here, and stays as it is"
                refusals.append(ItemRefusal("ALREADY_EXISTS", "memory", why))
    return MemoriesOutcome(new, same, refused, tuple(refusals))


def compare_version(version: ModuleVersion, here: Sequence[ModuleVersion]) -> VersionOutcome:
    """here: the versions of the module that the gateway has, newest first."""
    for known in here:
        if (known.digest, known.probes_digest) == (version.digest, version.probes_digest):
            return VersionOutcome(version.reference, False, known.reference)
    return VersionOutcome(version.reference, True, "")


def wanted_weights(
    alias: CubeAlias, numbers: Mapping[int, int | None]
) -> dict[int, float] | AliasOutcome | None:
    """The alias's weights by the numbers that the versions have at the gateway.

    numbers: number in the cube to number at the gateway, None for a version that is not there yet.
    Returns the refusal where the cube lacks a version. None: a version has no number yet.
    """
    weights: dict[int, float] = {}
    for target in alias.alias.targets:
        if target.version not in numbers:
            return AliasOutcome(alias.alias.name, "refused", f"the cube has no version {target.version}")
    for target in alias.alias.targets:
        number = numbers[target.version]
        if number is None:
            return None
        weights[number] = weights.get(number, 0.0) + target.weight
    return weights


def points_there(alias: Alias | None, weights: Mapping[int, float]) -> bool:
    """Whether an alias shares its traffic so already."""
    if alias is None:
        return False
    now = {target.version: target.weight for target in alias.targets}
    all_now, all_wanted = sum(now.values()), sum(weights.values())
    return now.keys() == weights.keys() and all(
        abs(now[number] / all_now - weight / all_wanted) < SAME_SHARE for number, weight in weights.items()
    )


def reason_of(cube: Cube) -> str:
    """Why an import changes an alias, as its history keeps it."""
    made = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(cube.manifest.created_s))
    return f"import of a cube of {made}"


def notes_of(cube: Cube, status: Status, with_modules: bool) -> tuple[str, ...]:
    notes = []
    if cube.manifest.namespaces and status.embedder != cube.manifest.embedder:
        notes.append(
            f"the memories are embedded anew by {status.embedder}; they were embedded by "
            f"{cube.manifest.embedder}"
        )
    if cube.versions and not with_modules:
        notes.append(f"the cube's {len(cube.versions)} versions of modules are left out")
    notes += [f"{left.reference} is not in the cube: {left.why}" for left in cube.manifest.left_out]
    return tuple(notes)
