"""`memserve explain`: why a request went where it went, what its answer used, what became of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table

from memserve.cli.ask import rung_line
from memserve.cli.options import Call, gateway_command
from memserve.client import AnswerExplanation, Explanation, KeptAnswer, RouteCandidate

TERMS = ("queue", "slot", "memory", "fetch", "prefill", "load", "learned")


@gateway_command(timeout_s=60)
def explain(
    call: Call,
    request_id: Annotated[str, typer.Argument(help="The request, as its receipt names it.")],
    leave_one_out: Annotated[
        bool,
        typer.Option(
            "--leave-one-out",
            help="Measure how much each passage mattered: how much likelier the answer is with it. Needs an "
            "answer of `memserve generate --keep-prompt`.",
        ),
    ] = False,
) -> None:
    """Show why a request went to its worker, what its answer used, and what became of it.

    A gateway knows its own last 2,048 requests, and asks the others.
    What an answer used is kept for a day.
    Times are in milliseconds.
    TTFT is max(queue + slot + memory, fetch) + prefill + load + learned.

    Example: `memserve explain 3f0c8a7e5d1b4c22a1f09e8d7c6b5a43`
    """
    found = call.client.explain_answer(request_id, leave_one_out=leave_one_out)
    lines: list[RenderableType] = []
    if found.routing is not None:
        lines += explanation_lines(found.routing)
    lines += answer_lines(found)
    call.show(found, text=Group(*lines))


def answer_lines(found: AnswerExplanation) -> Iterator[RenderableType]:
    """What the answer used."""
    answer = found.answer
    if answer is None:
        yield f"what it used: {found.answer_absent}"
        return
    yield (
        f"{answer.cached_share:.0%} of {answer.prompt_tokens} prompt tokens cached; "
        f"recall: {answer.recall_outcome}"
    )
    if answer.passages:
        yield _passages(answer)
    for skipped in answer.skipped:
        yield f"not used: {skipped.namespace}/{skipped.memory_id}: {skipped.reason}, {skipped.detail}"
    for module in answer.modules:
        made = f"; made from {', '.join(module.sources)}" if module.sources else ""
        parents = ", ".join(parent[:12] for parent in module.parents)
        composed = f"; composed from {parents}" if parents else ""
        yield f"module {module.name}@{module.version} {module.digest[:12]}{made}{composed}"
    yield f"prompt: {answer.prompt_absent if answer.prompt is None else answer.prompt.text}"
    if answer.leave_one_out is not None:
        weighed = answer.leave_one_out
        yield (
            f"with all passages the first {weighed.scored_tokens} tokens of the answer have "
            f"{weighed.logprob:.2f} nats; `nats` is what they lose without a passage"
        )
    elif found.leave_one_out_absent:
        yield f"no passage was left out: {found.leave_one_out_absent}"


def _passages(answer: KeptAnswer) -> Table:
    weights = {
        (weight.namespace, weight.memory_id): weight
        for weight in (answer.leave_one_out.passages if answer.leave_one_out is not None else ())
    }
    table = Table("passage", "version", "score", "relevance", "nats", "found", box=None, pad_edge=False)
    for passage in answer.passages:
        weight = weights.get((passage.namespace, passage.memory_id))
        table.add_row(
            f"{passage.namespace}/{passage.memory_id}",
            str(passage.version),
            f"{passage.score:.4f}",
            f"{passage.relevance:.2f}",
            "" if weight is None else f"{weight.nats:+.3f}",
            passage.why,
        )
    return table


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
    for fact in route.outdated:
        yield f"the text wins over {fact.module}: {fact.why}"
    if usage is not None and usage.rungs:
        yield f"took part: {'; '.join(map(rung_line, usage.rungs))}"
    took = f", TTFT {usage.ttft_ms:.0f} ms from the call's acceptance" if usage else ""
    yield f"outcome: {found.outcome}{took}"


def _cells(candidate: RouteCandidate) -> Iterator[str]:
    yield candidate.worker_id
    yield f"{candidate.ttft_ms:.0f}"
    for term in TERMS:
        yield f"{getattr(candidate, f'{term}_ms'):.0f}"
    yield from (str(candidate.cached_tokens), str(candidate.queued_tokens), str(candidate.running))
