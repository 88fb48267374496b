"""`memserve explain`: why a request went where it went, and what became of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table

from memserve.cli.options import Call, gateway_command
from memserve.client import Explanation, RouteCandidate

TERMS = ("queue", "slot", "memory", "fetch", "prefill", "load", "learned")


@gateway_command(timeout_s=10)
def explain(
    call: Call,
    request_id: Annotated[str, typer.Argument(help="The request, as its receipt names it.")],
) -> None:
    """Show why a request went to its worker: every candidate, term by term, and what became of it.

    A gateway knows its own last 2,048 requests, and asks the others.
    Times are in milliseconds.
    TTFT is max(queue + slot + memory, fetch) + prefill + load + learned.

    Example: `memserve explain 3f0c8a7e5d1b4c22a1f09e8d7c6b5a43`
    """
    found = call.client.explain(request_id)
    call.show(found, text=Group(*explanation_lines(found)))


def explanation_lines(found: Explanation) -> Iterator[RenderableType]:
    route, usage = found.route, found.usage
    yield f"{route.worker_id}: {route.reason}"
    table = Table("worker", "TTFT", *TERMS, "cached", "queued", "running", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for candidate in sorted(route.candidates, key=lambda each: each.ttft_ms):
        chosen = candidate.worker_id == route.worker_id
        table.add_row(*_cells(candidate), style="bold" if chosen else None)
    yield table
    for excluded in route.excluded:
        yield f"{excluded.worker_id}: not asked, {excluded.reason}"
    yield (
        f"{route.prompt_tokens} prompt tokens; predicted {route.predicted_ttft_ms:.0f} ms, "
        f"within {route.predicted_within_ms:.0f} ms for nine of ten"
    )
    took = f", TTFT {usage.ttft_ms:.0f} ms from the call's acceptance" if usage else ""
    yield f"outcome: {found.outcome}{took}"


def _cells(candidate: RouteCandidate) -> Iterator[str]:
    yield candidate.worker_id
    yield f"{candidate.ttft_ms:.0f}"
    for term in TERMS:
        yield f"{getattr(candidate, f'{term}_ms'):.0f}"
    yield from (str(candidate.cached_tokens), str(candidate.queued_tokens), str(candidate.running))
