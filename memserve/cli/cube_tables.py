"""Cubes, and what became of them, as tables."""

from __future__ import annotations

import datetime
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from memserve.cli.module_tables import targets_text
from memserve.cli.terminal import coloured, line
from memserve.client import Cube, CubeImport

NAMES_SHOWN = 1000


def cube_text(cube: Cube) -> Group:
    return Group(*_head(cube), _namespaces(cube), _versions(cube), *_aliases(cube), *_left_out(cube))


def _head(cube: Cube) -> Iterator[Text]:
    manifest = cube.manifest
    made = datetime.datetime.fromtimestamp(manifest.created_s, datetime.UTC)
    yield line(
        f"{cube.path}: {cube.size_bytes} bytes, memories: {cube.memories}, "
        f"module versions: {len(cube.versions)}, sound"
    )
    yield line(f"  of {made:%Y-%m-%d %H:%M:%S}Z, memserve {manifest.memserve}")
    yield line(f"  base model {manifest.model}, {manifest.model_digest}")
    yield line(f"  embedder {manifest.embedder}")
    if not cube.signer:
        yield line("  not signed")
    elif cube.is_verified:
        yield line(f"  signed by {cube.signer}, verified")
    else:
        yield coloured("  signed", "yellow", f" by {cube.signer}, not verified: name the key with --verify")


def _namespaces(cube: Cube) -> RenderableType:
    table = Table("namespace", "memories")
    for name, memories in list(cube.manifest.namespaces.items())[:NAMES_SHOWN]:
        table.add_row(name, str(memories))
    return table if table.row_count else line("no memories")


def _versions(cube: Cube) -> RenderableType:
    table = Table("version", "kind", "digest", "bytes", "probes", "made from")
    for version in cube.versions[:NAMES_SHOWN]:
        made_from = [*version.sources, *(parent[:12] for parent in version.parents)]
        table.add_row(
            version.reference,
            str(version.kind),
            version.digest[:12],
            str(version.size_bytes),
            "yes" if version.probes_digest else "no",
            ", ".join(made_from[:4]) + ("…" if len(made_from) > 4 else ""),
        )
    return table if table.row_count else line("no modules")


def _aliases(cube: Cube) -> Iterator[Text]:
    for module in cube.modules[:NAMES_SHOWN]:
        for alias in module.aliases:
            yield line(
                f"{module.name}@{alias.alias.name}: {targets_text(alias.alias.targets)}, "
                f"{len(alias.history)} changes"
            )


def _left_out(cube: Cube) -> Iterator[Text]:
    for left in cube.manifest.left_out[:NAMES_SHOWN]:
        yield coloured("left out", "yellow", f" {left.reference}: {left.why}")


def import_text(outcome: CubeImport) -> Group:
    """What was changed, or would be."""
    table = Table("what", "would be" if outcome.dry_run else "is")
    memories = outcome.memories
    if memories.new or memories.same or memories.refused:
        table.add_row(
            "memories", f"{memories.new} new, {memories.same} there already, {memories.refused} refused"
        )
    for version in outcome.versions:
        published = f"published as {version.here}" if version.here else "published"
        table.add_row(version.reference, published if version.is_new else f"{version.here}, there already")
    for alias in outcome.aliases:
        table.add_row(alias.reference, f"{alias.outcome}: {alias.detail}" if alias.detail else alias.outcome)
    parts: list[RenderableType] = [table if table.row_count else line("the cube is empty")]
    parts += [coloured("refused", "red", f" {refusal.message}") for refusal in memories.refusals]
    parts += [line(note) for note in outcome.notes]
    if outcome.dry_run:
        parts.append(line("nothing was changed: this was a dry run"))
    return Group(*parts)
