"""`memserve ladder`: where namespaces stand on the ladder of knowledge, and why."""

from __future__ import annotations

import time
from collections.abc import Iterator

import typer
from rich.console import Group, RenderableType
from rich.table import Table

from memserve.cli.options import Call, gateway_command
from memserve.domain.ladder import LadderAction, LadderReport, LadderStep

MIB = 1 << 20

ladder_app = typer.Typer(
    help="The ladder of knowledge: text, warm prefix, cartridge, LoRA.", no_args_is_help=True
)


@ladder_app.command("show")
@gateway_command(timeout_s=30)
def show(call: Call) -> None:
    """Show what was last decided about the tenant's namespaces, and why.

    The setting `knowledge_ladder` says whether it is carried out.
    Example: `memserve ladder show`
    """
    report = call.client.ladder()
    call.show(report, text=Group(*ladder_lines(report, time.time())))


def ladder_lines(report: LadderReport, now_s: float) -> Iterator[RenderableType]:
    budget, use = report.budget, report.use
    yield (
        f"the ladder is at {report.mode}; it takes {use.resident_bytes / MIB:.1f} of "
        f"{budget.resident_bytes / MIB:.1f} MiB, and {use.make_s:.0f} of {budget.make_s:.0f} s of making in "
        "24 hours"
    )
    if not report.at_s:
        yield "nothing has been decided yet"
        return
    yield f"decided {max(0.0, now_s - report.at_s):.0f} s ago"
    table = Table("namespace", "decision", "why")
    for step in report.steps:
        table.add_row(*_row(step))
    yield table


def _row(step: LadderStep) -> tuple[str, str, str]:
    decision = step.decision
    if decision.action is LadderAction.KEEP:
        what = f"keep {decision.from_rung}"
    else:
        what = f"{decision.action} {decision.from_rung} to {decision.to_rung}"
    why = f"{decision.reason}. {step.outcome}".strip(". ")
    return decision.subject, what, why
