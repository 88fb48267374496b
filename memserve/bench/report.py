"""The report: Markdown with plots, and the file to repeat it from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from memserve.bench.figures import Figures, Spread
from memserve.bench.knee import Knee
from memserve.bench.record import Record, write_record
from memserve.bench.rows import Outcome
from memserve.bench.runs import Ran, Results
from memserve.bench.svg import Plot, Series, svg

RECORD_FILE = "bench.json"
SHOWN_POINTS = 5000
TIMES = (("ttft_ms", "TTFT"), ("tpot_ms", "TPOT"), ("itl_ms", "between tokens"), ("e2e_ms", "whole answer"))


def write_report(record: Record, folder: Path) -> Path:
    """Write report.md, its plots and bench.json. Returns the path of report.md. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    write_record(record, folder / RECORD_FILE)
    results = record.results
    plots = _sweep_plots(record) if len(results.runs) > 1 else _run_plots(results.runs)
    for name, plot in plots.items():
        (folder / name).write_text(svg(plot), encoding="utf-8")
    lines = [f"# Load: {record.name}", "", *_head(record), ""]
    lines += [f"![{plot.title}]({name})" for name, plot in plots.items()]
    lines += ["", "## Runs", "", *_runs_table(results.runs)]
    for run in results.runs[:1] if len(results.runs) == 1 else ():
        lines += ["", "## Times, milliseconds", "", *_times_table(run.figures)]
        lines += ["", "## Requests", "", *_outcome_lines(run.figures)]
    lines += [
        "",
        "## To repeat it",
        "",
        f"`memserve bench --repeat {RECORD_FILE}`",
        "",
        *_surroundings(record),
    ]
    path = folder / "report.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def verdict_lines(results: Results) -> Iterator[str]:
    """What a reader must know before the figures."""
    for run in results.runs:
        for reason in run.figures.invalid:
            yield f"INVALID: {reason}"
    if not results.is_complete:
        yield "INCOMPLETE: it was ended before its time"


def state_line(runs: Sequence[Ran]) -> str:
    """Which state of the caches the runs began with."""
    if all(run.is_cold for run in runs):
        return "cold: every prompt of a run begins with a new salt, so that no cache knows it"
    return "as earlier runs left it: the salt was given"


def knee_line(knee: Knee, wanted: float) -> str:
    rule = f"goodput of {100 * wanted:g} %"
    if knee.per_s is None:
        return f"knee ({rule}): {knee.bound}"
    within = "" if knee.plus_minus_per_s is None else f" ± {knee.plus_minus_per_s:.3g}"
    seeds = f"95 % interval over {len(knee.seeds)} seeds" if within else "one seed, no interval"
    return f"knee ({rule}): {knee.per_s:.3g}{within} requests/s ({seeds})"


def _head(record: Record) -> Iterator[str]:
    results = record.results
    if record.choices.scenario.title:
        yield f"{record.choices.scenario.title}."
        yield ""
    for line in verdict_lines(results):
        yield f"- **{line}**"
    if results.knee:
        yield f"- {knee_line(results.knee, record.choices.scenario.goodput)}"
    if results.runs:
        yield f"- State of the caches: {state_line(results.runs)}."
        ceiling = results.runs[0].ceiling
        yield f"- The hit ceiling counts {ceiling.unit}, and no passages that are recalled."
    slo = record.choices.scenario.slo.model_dump(exclude_none=True)
    limits = [f"{name} {value:g}" for name, value in slo.items() if name.endswith("_ms")]
    yield f"- In time: {', '.join(limits) or 'any answer'}"


def _runs_table(runs: Sequence[Ran]) -> Iterator[str]:
    columns = (
        "requested/s",
        "sent/s",
        "completed/s",
        "seed",
        "goodput",
        "late",
        "refused",
        "failed",
        "cut off",
    )
    yield f"| {' | '.join((*columns, 'hits', 'ceiling'))} |"
    yield f"|{'---|' * (len(columns) + 2)}"
    for run in runs:
        figures, counted = run.figures, run.figures.outcomes
        cells = [
            f"{figures.requested_per_s:.3g}", f"{figures.sent_per_s:.3g}", f"{figures.completed_per_s:.3g}",
            str(run.seed), f"{100 * figures.goodput:.1f} %",
            *(str(counted[name]) for name in ("late", "refused", "failed", "cut_off")),
            "-" if figures.hit_share is None else f"{100 * figures.hit_share:.1f} %",
            f"{100 * run.ceiling.share:.1f} %",
        ]  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def _times_table(figures: Figures) -> Iterator[str]:
    yield "| | p50 | p90 | p99 | most |"
    yield "|---|---|---|---|---|"
    for field, name in (*TIMES, ("lateness_ms", "the generator's lateness")):
        spread: Spread | None = getattr(figures, field)
        if spread is not None:
            yield f"| {name} | {spread.p50:.1f} | {spread.p90:.1f} | {spread.p99:.1f} | {spread.most:.1f} |"


def _outcome_lines(figures: Figures) -> Iterator[str]:
    for outcome in Outcome:
        reasons = figures.reasons.get(outcome.value, {})
        why = f" ({', '.join(f'{reason}: {count}' for reason, count in reasons.items())})" if reasons else ""
        yield f"- {outcome.value}: {figures.outcomes[outcome.value]}{why}"
    yield f"- The generator took {figures.cpu_share:.2f} of a core."
    for stall in figures.stalls:
        yield f"- {stall.worker} sent nothing for {1000 * stall.seconds:.0f} ms from {stall.from_s:.2f} s on."


def _surroundings(record: Record) -> Iterator[str]:
    for name, value in record.surroundings.items():
        if not isinstance(value, dict):
            yield f"- {name}: {value}"
        for key, inner in value.items() if isinstance(value, dict) else ():
            shown = ", ".join(f"{a} {b}" for a, b in inner.items()) if isinstance(inner, dict) else inner
            yield f"- {name}: {key} {shown}"


def _run_plots(runs: Sequence[Ran]) -> dict[str, Plot]:
    if not runs:
        return {}
    by_outcome: dict[str, list[tuple[float, float]]] = defaultdict(list)
    times = []
    step = max(len(runs[0].rows) // SHOWN_POINTS, 1)
    for row in runs[0].rows:
        if row.is_answered and row.ttft_s is not None:
            times.append(1000 * row.ttft_s)
            if row.number % step == 0:
                by_outcome[row.outcome.value].append((row.intended_s, 1000 * row.ttft_s))
    times.sort()
    shares = tuple((ms, 100 * (place + 1) / len(times)) for place, ms in enumerate(times))[:: max(step, 1)]
    over_time = Plot(
        "Time to first token over the run", "intended time, s", "TTFT, ms",
        tuple(Series(name, tuple(points), line=False) for name, points in sorted(by_outcome.items())),
    )  # fmt: skip
    spread = Plot("Time to first token, whole answers", "TTFT, ms", "% of the answers", (Series("", shares),))
    return {"ttft-over-time.svg": over_time, "ttft.svg": spread}


def _sweep_plots(record: Record) -> dict[str, Plot]:
    goodput: dict[str, list[tuple[float, float]]] = defaultdict(list)
    ttft: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for run in sorted(record.results.runs, key=lambda run: run.figures.requested_per_s):
        rate = run.rate_per_s or run.figures.requested_per_s
        goodput[f"seed {run.seed}"].append((rate, 100 * run.figures.goodput))
        if run.figures.ttft_ms is not None:
            ttft[f"seed {run.seed}"].append((rate, run.figures.ttft_ms.p99))
    knee = record.results.knee.per_s if record.results.knee else None
    wanted, x = 100 * record.choices.scenario.goodput, "offered requests/s"
    return {
        "goodput.svg": Plot("Goodput by rate", x, "% in time", _series(goodput), wanted, knee),
        "ttft-by-rate.svg": Plot(
            "p99 of the time to first token by rate", x, "TTFT p99, ms", _series(ttft),
            record.choices.scenario.slo.ttft_ms, knee,
        ),
    }  # fmt: skip


def _series(named: dict[str, list[tuple[float, float]]]) -> tuple[Series, ...]:
    return tuple(Series(name, tuple(points)) for name, points in sorted(named.items()))
