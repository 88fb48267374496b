"""`memserve lineage`: what was made of what, erasures, and what is to be trained again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table

from memserve.cli.distil import plan_lines
from memserve.cli.memory_tables import day, erased_table
from memserve.cli.module_tables import version_text
from memserve.cli.modules import LONG_S, kind_named
from memserve.cli.options import HELP, Call, gateway_command
from memserve.cli.terminal import coloured, err, line, progress_bar
from memserve.client import (
    DistilChoice,
    DistilPlan,
    DistilProgress,
    Erasure,
    Lineage,
    LineageNode,
    Retraining,
)
from memserve.domain.lineage import LineageState
from memserve.policy.lineage.graph import DEPTH_MAX, NODES_MAX, tree_lines

lineage_app = typer.Typer(
    help="Lineage: what was made of what, erasures, and what is to be trained again.",
    no_args_is_help=True,
    context_settings=HELP,
)
STYLES = {LineageState.OUT_OF_DATE: "yellow", LineageState.GONE: "red"}


@lineage_app.command("show")
@gateway_command(timeout_s=30)
def show(
    call: Call,
    of: Annotated[
        str,
        typer.Argument(
            metavar="THING", help="NAMESPACE/MEMORY, MODULE@VERSION, or the request id of an answer."
        ),
    ],
    depth: Annotated[int, typer.Option(min=0, max=DEPTH_MAX, help="Steps in each direction. 0: 6.")] = 0,
    limit: Annotated[int, typer.Option(min=0, max=NODES_MAX, help="Nodes at most. 0: 200.")] = 0,
    sources: Annotated[bool, typer.Option(help="Show what it was made of.")] = True,
    products: Annotated[bool, typer.Option(help="Show what was made of it.")] = True,
) -> None:
    """Show what a memory, a module version or an answer was made of, and what was made of it.

    Example: `memserve lineage show handbook@2 --depth 2`
    """
    found = call.client.lineage.show(of, sources=sources, products=products, depth=depth, limit=limit)
    call.show(found, text=Group(*lineage_lines(found, sources=sources, products=products)))


@lineage_app.command("erasures")
@gateway_command(timeout_s=30)
def erasures(
    call: Call,
    limit: Annotated[int, typer.Option(min=0, max=1000, help="The newest so many. 0: 20.")] = 0,
) -> None:
    """List erasures with what each has removed, the newest first."""
    found = call.client.lineage.erasures(limit)
    table = Table("erasure", "when", "of", "state", "versions", "removed", "pending")
    for each in found:
        removed = sum(place.removed for place in each.places)
        table.add_row(
            each.erasure_id,
            day(each.at_s),
            _of(each),
            each.state,
            ", ".join(each.retired),
            str(removed),
            "; ".join(each.pending),
        )
    call.show({"erasures": [asdict(each) for each in found]}, text=table)


@lineage_app.command("check")
@gateway_command(timeout_s=60)
def check(
    call: Call,
    erasure_id: Annotated[str, typer.Argument(metavar="ERASURE", help="As its report names it.")],
) -> None:
    """Look again for everything that an erasure has removed. Exits with 1 when something is found."""
    found = call.client.lineage.check_erasure(erasure_id)
    left = sum(place.removed for place in found.places)
    call.show(found, text=Group(erased_table(found.places, "still there"), line(_verdict(found, left))))
    if left:
        raise typer.Exit(1)


@lineage_app.command("retraining")
@gateway_command(timeout_s=30)
def retraining(call: Call) -> None:
    """List modules that are to be made again without what was erased."""
    entries = _queued(call)
    table = Table("module", "retired", "memories", "since", "made since")
    for entry in entries:
        table.add_row(
            entry.module, entry.retired, str(len(entry.memories)), day(entry.queued_s), entry.made or "no"
        )
    call.show({"retraining": [asdict(entry) for entry in entries]}, text=table)


@lineage_app.command("retrain")
@gateway_command(timeout_s=LONG_S)
def retrain(
    call: Call,
    name: Annotated[str, typer.Argument(metavar="MODULE", help="As `lineage retraining` lists it.")],
) -> None:
    """Make a module again of the memories that are left. The version is a candidate: nothing is promoted.

    Example: `memserve lineage retrain handbook`
    """
    waiting = [entry for entry in _queued(call) if entry.module == name and not entry.made]
    if not waiting:
        call.show({"module": name, "waiting": False}, text=line(f"{name}: it does not wait to be made again"))
        return
    entry = waiting[0]
    with progress_bar(f"distilling {name}") as bar:

        def tell(event: DistilPlan | DistilProgress) -> None:
            if isinstance(event, DistilProgress):
                bar(event.done, event.total)
            else:
                err.print(plan_lines(event)[0])

        version = call.client.modules.distil(
            name,
            DistilChoice(memories=entry.memories),
            kind=kind_named(entry.kind),
            budget_s=entry.budget_s,
            seed=entry.seed,
            notes=f"again without what was erased; before: {entry.retired}",
            progress=tell,
        )
    if version is None:
        call.show({"module": name, "stopped": True}, text=line(f"{name}: the distillation was stopped"))
        return
    call.show(version, text=version_text(version))


def lineage_lines(found: Lineage, *, sources: bool, products: bool) -> Iterator[RenderableType]:
    """A tree for each direction."""
    root = next((node for node in found.nodes if node.name == found.root), None)
    if root is not None:
        yield _node_line(0, root, "")
    for wanted, up, title in ((sources, True, "made of"), (products, False, "made of it")):
        rows = list(tree_lines(found, up=up)) if wanted else []
        if wanted:
            yield line(f"{title}:" if rows else f"{title}: nothing that is recorded")
        for depth, node, how in rows:
            yield _node_line(depth, node, how)
    for cut in found.cut:
        yield line(f"left out: {cut}")


def erasure_lines(erasure: Erasure) -> Iterator[RenderableType]:
    """What an erasure did, or would do."""
    yield erased_table(erasure.places)
    for name in erasure.derived:
        yield line(f"derived from it: {name}")
    for reference in erasure.retired:
        yield line(f"retired: {reference}")
    for moved in erasure.aliases:
        after = ", ".join(f"{target.version}" for target in moved.after)
        goes = f"to version {after}" if after else "dropped"
        yield line(f"alias {moved.module}@{moved.alias}: {goes}; {moved.why}")
    for entry in erasure.retraining:
        yield line(f"to be made again: {entry.module}, of {len(entry.memories)} memories")
    for pending in erasure.pending:
        yield line(f"pending: {pending}")
    if erasure.erasure_id:
        yield line(
            f"erasure {erasure.erasure_id}: {erasure.state}, {erasure.seconds:.1f} s; look again with "
            "`memserve lineage check`"
        )


def _node_line(depth: int, node: LineageNode, how: str) -> RenderableType:
    state = "" if node.state is LineageState.CURRENT else f" ({node.state.replace('_', ' ')})"
    made = f" [{how}]" if how else ""
    told = f"{made}{state}: {node.detail}" if node.detail else f"{made}{state}"
    return coloured(f"{'  ' * depth}{node.name}", STYLES.get(node.state, "bold"), told)


def _queued(call: Call) -> list[Retraining]:
    """The newest of each module."""
    entries: dict[str, Retraining] = {}
    for erasure in call.client.lineage.erasures(1000):
        for entry in erasure.retraining:
            entries.setdefault(entry.module, entry)
    return list(entries.values())


def _of(erasure: Erasure) -> str:
    return (
        f"{erasure.namespace}/{erasure.memory_id}" if erasure.memory_id else f"{erasure.namespace}, all of it"
    )


def _verdict(erasure: Erasure, left: int) -> str:
    return f"{_of(erasure)}: {left} things are still there" if left else f"{_of(erasure)}: nothing is left"
