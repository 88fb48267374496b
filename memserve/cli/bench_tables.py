"""How `memserve bench` shows a run under way and its figures."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table

from memserve.bench.figures import Figures, Spread
from memserve.bench.generator import Snapshot
from memserve.bench.record import Record
from memserve.bench.report import TIMES, knee_line, state_line, verdict_lines
from memserve.bench.rows import Outcome
from memserve.bench.runs import Ran, Watchers
from memserve.cli.terminal import coloured, err, reporter

LINE_EVERY_S = 5.0
SHOWN_STALLS = 10


@contextlib.contextmanager
def live() -> Iterator[Watchers]:
    """Show the progress on standard error: a line that changes on a terminal, else a line now and then."""
    say = reporter()
    if err.is_terminal:
        with Live(console=err, transient=True, auto_refresh=False) as shown:
            yield Watchers(
                say, lambda snapshot: shown.update(coloured(snapshot_line(snapshot), ""), refresh=True)
            )
        return
    said_s = time.monotonic()

    def now_and_then(snapshot: Snapshot) -> None:
        nonlocal said_s
        if time.monotonic() - said_s >= LINE_EVERY_S:
            said_s = time.monotonic()
            say(snapshot_line(snapshot))

    yield Watchers(say, now_and_then)


def snapshot_line(snapshot: Snapshot) -> str:
    ended = ", ".join(f"{outcome.value} {count}" for outcome, count in sorted(snapshot.outcomes.items()))
    return (
        f"{snapshot.elapsed_s:.0f} s: {snapshot.offered} of {snapshot.planned} offered, "
        f"{snapshot.under_way} under way; {ended or 'none ended'}"
    )


def results_view(record: Record) -> Group:
    """The figures for a person."""
    results = record.results
    parts: list[RenderableType] = []
    if len(results.runs) == 1:
        parts += _run_parts(results.runs[0], recalls=record.choices.scenario.recall is not None)
    elif results.runs:
        parts.append(_sweep_table(results.runs))
    if results.knee:
        parts.append(knee_line(results.knee, record.choices.scenario.goodput))
    if results.runs:
        parts.append(f"state of the caches: {state_line(results.runs)}")
    for line in verdict_lines(results):
        word, _, rest = line.partition(":")
        parts.append(coloured(word, "bold red", f":{rest}"))
    if not results.runs:
        parts.append("nothing was offered")
    return Group(*parts)


def _run_parts(run: Ran, *, recalls: bool) -> Iterator[RenderableType]:
    figures = run.figures
    times = _table("milliseconds", "p50", "p90", "p99", "most")
    for field, name in (*TIMES, ("lateness_ms", "generator's lateness")):
        spread: Spread | None = getattr(figures, field)
        if spread is not None:
            quantiles = (spread.p50, spread.p90, spread.p99, spread.most)
            times.add_row(name, *(f"{value:.1f}" for value in quantiles))
    yield times
    yield (
        f"requested {figures.requested_per_s:.2f}/s, sent {figures.sent_per_s:.2f}/s, completed "
        f"{figures.completed_per_s:.2f}/s, {figures.output_tokens_per_s:.1f} output tokens/s"
    )
    counted = ", ".join(f"{outcome.value} {figures.outcomes[outcome.value]}" for outcome in Outcome)
    yield f"goodput {100 * figures.goodput:.1f} % of {figures.offered} offered: {counted}"
    for outcome, reasons in figures.reasons.items():
        yield f"{outcome}: " + ", ".join(f"{reason} {count}" for reason, count in reasons.items())
    yield _hits_line(run, recalls=recalls)
    for worker, count in figures.workers.items():
        silence = figures.longest_silence_ms.get(worker, 0.0)
        yield f"{worker}: {count} answers, longest silence while it owed answers {silence:.0f} ms"
    for stall in figures.stalls[:SHOWN_STALLS]:
        yield f"stall: {stall.worker} from {stall.from_s:.2f} s on, {1000 * stall.seconds:.0f} ms"
    if len(figures.stalls) > SHOWN_STALLS:
        yield f"and {len(figures.stalls) - SHOWN_STALLS} stalls more"
    if figures.late_by_generator:
        yield f"{figures.late_by_generator} of the late would have been in time, had they left in time"
    yield f"the generator took {figures.cpu_share:.2f} of a core"
    if run.cut_prompts:
        yield f"{run.cut_prompts} prompts of the trace were cut"


def _hits_line(run: Ran, *, recalls: bool) -> str:
    hits = run.figures.hit_share
    said = "the server does not say" if hits is None else f"{100 * hits:.1f} % of the prompt tokens"
    ceiling = run.ceiling
    without = ", without passages" if recalls else ""
    return f"cache hits: {said}; a cache without end {100 * ceiling.share:.1f} % ({ceiling.unit}{without})"


def _sweep_table(runs: tuple[Ran, ...]) -> Table:
    table = _table(
        "requested/s", "sent/s", "completed/s", "seed", "goodput %", "TTFT p50", "p99", "late", "refused",
        "failed", "cut off", "hits %", "ceiling %", "late p99 ms", "CPU",
    )  # fmt: skip
    for run in runs:
        figures = run.figures
        counted = (figures.outcomes[name] for name in ("late", "refused", "failed", "cut_off"))
        table.add_row(
            f"{figures.requested_per_s:.2f}", f"{figures.sent_per_s:.2f}", f"{figures.completed_per_s:.2f}",
            str(run.seed), f"{100 * figures.goodput:.1f}", *_median_and_p99(figures), *map(str, counted),
            "-" if figures.hit_share is None else f"{100 * figures.hit_share:.1f}",
            f"{100 * run.ceiling.share:.1f}",
            f"{figures.lateness_ms.p99:.1f}" if figures.lateness_ms else "-", f"{figures.cpu_share:.2f}",
        )  # fmt: skip
    return table


def _median_and_p99(figures: Figures) -> tuple[str, str]:
    if figures.ttft_ms is None:
        return "-", "-"
    return f"{figures.ttft_ms.p50:.0f}", f"{figures.ttft_ms.p99:.0f}"


def _table(first: str, *others: str) -> Table:
    table = Table(first, *others, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    return table
