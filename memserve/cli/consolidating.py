"""`memserve memories consolidate`: a namespace becomes fewer, better memories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table

from memserve.cli.memory_options import Namespace
from memserve.cli.module_tables import when
from memserve.cli.options import Call, gateway_command
from memserve.cli.terminal import err, line, progress_bar
from memserve.domain import Consolidation, ConsolidationPlan, ConsolidationState
from memserve.errors import StartupError

consolidating_app = typer.Typer()
LONG_S = 4 * 3600.0


@consolidating_app.command("consolidate")
@gateway_command(timeout_s=LONG_S)
def consolidate(
    call: Call,
    namespace: Namespace,
    dry_run: Annotated[bool, typer.Option(help="Only show what would become one, and why.")] = False,
    accept: Annotated[bool, typer.Option(help="Let the candidate take its sources' place.")] = False,
    reject: Annotated[bool, typer.Option(help="Take the candidate away.")] = False,
    summaries: Annotated[
        bool, typer.Option("--summaries/--no-summaries", help="Join facts about one thing.")
    ] = True,
    model_writes: Annotated[
        bool, typer.Option("--model-writes", help="The served model writes the summaries.")
    ] = False,
    budget_s: Annotated[
        float, typer.Option("--budget-s", min=0, help="Seconds of the served model's answers. 0: 60.")
    ] = 0.0,
) -> None:
    """Merge duplicates of a namespace, and join facts about one thing, as a candidate.

    The candidate is tried with questions about its sources. No memory changes
    before it is accepted.

    Example: `memserve memories consolidate notes --dry-run`
    """
    if accept and reject:
        raise StartupError("--accept and --reject exclude each other")
    if accept or reject:
        decided = call.client.decide_consolidation(namespace, accept=accept)
        call.show(decided, text=Group(*consolidation_lines(decided)))
        return
    if dry_run:
        plan = call.client.plan_consolidation(namespace, summaries=summaries)
        call.show(plan, text=Group(*plan_lines(plan)))
        return
    with progress_bar(f"consolidating {namespace}") as bar:
        tried = call.client.consolidate(
            namespace,
            summaries=summaries,
            model_writes=model_writes,
            budget_s=budget_s,
            progress=bar,
        )
    call.show(tried, text=Group(*consolidation_lines(tried)))
    if tried.state is ConsolidationState.CANDIDATE:
        err.print(f"nothing has changed; accept it with: memserve memories consolidate {namespace} --accept")


@consolidating_app.command("consolidations")
@gateway_command(timeout_s=30)
def consolidations(call: Call) -> None:
    """List the newest consolidation of each namespace, of the last seven days."""
    newest = call.client.consolidations()
    call.show({"consolidations": [asdict(each) for each in newest]}, text=consolidations_table(newest))


def plan_lines(plan: ConsolidationPlan) -> list[RenderableType]:
    """What would become one, for a person."""
    lines = [f"{plan.memories} memories: {len(plan.merges)} merges, {plan.fewer} memories fewer"]
    for merge in plan.merges:
        lines.append(f"{merge.memory_id}: {merge.text}")
        sources = ", ".join(source.memory_id for source in merge.sources)
        lines.append(f"  {merge.kind}, {merge.reason}; in place of {sources}")
    lines += [f"left alone: {each.memory_id} {each.reason}" for each in plan.left_alone]
    if plan.not_looked_at:
        lines.append(f"{plan.not_looked_at} more memories were not looked at")
    return [line(each) for each in lines]


def consolidation_lines(value: Consolidation) -> list[RenderableType]:
    """What has become of it, for a person."""
    probes = value.probes
    asked = f"asked {probes.asked}, right {probes.right_before} before and {probes.right_after} after"
    told = [
        f"{value.plan.namespace}: {value.state}{f' ({value.reason})' if value.reason else ''}",
        f"{probes.questions} questions: recall finds {probes.found_before} before and "
        f"{probes.found_after} after; the served model was {asked if probes.asked else 'not asked'}",
    ]
    return [*map(line, told), *plan_lines(value.plan)]


def consolidations_table(newest: Sequence[Consolidation]) -> Table:
    table = Table("namespace", "state", "merges", "fewer", "since", "by", "")
    for each in newest:
        table.add_row(
            each.plan.namespace,
            each.state,
            str(len(each.plan.merges)),
            str(each.plan.fewer),
            when(each.at_s),
            each.principal,
            each.reason,
        )
    return table
