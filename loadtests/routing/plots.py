"""The report of `goodput`: Markdown, and a plot for each scene."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot

from loadtests.harness.figures import Bar
from loadtests.routing.grids import OURS, Line, Results

mpl.use("svg")
# Without a date and random ids, equal results give equal files.
mpl.rcParams["svg.hashsalt"] = "memserve"


def write_report(results: Mapping[str, Results], bars: Sequence[Bar], folder: Path) -> Path:
    """Write report.md and its plots. Returns the path of report.md."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["# Goodput by load", ""]
    lines += [
        f"- {bar.name}: **{bar.figure:.3g}** "
        f"({'at least' if bar.at_least is not None else 'at most'} "
        f"{bar.at_least if bar.at_least is not None else bar.at_most:g}"
        f"{')' if bar.holds else ', missed)'}"
        for bar in bars
    ]
    for name, of in results.items():
        file = f"{name.replace(', ', '-').replace(' ', '-')}.svg"
        _plot(of, folder / file)
        lines += ["", f"## {of.grid.name}", "", f"![goodput by load]({file})", "", *_table(of)]
    path = folder / "report.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _table(of: Results) -> list[str]:
    loads = of.grid.loads
    rows = [
        f"| policy | {' | '.join(f'{load:g} ×' for load in loads)} | load at 90 % |",
        f"|---|{'---|' * (len(loads) + 1)}",
    ]
    for line in of.grid.lines:
        cells = [f"{100 * of.goodput(line, load):.1f}" for load in loads]
        rows.append(f"| {line.name} | {' | '.join(cells)} | {of.sustained(line):.2f} |")
    return rows


def _plot(of: Results, path: Path) -> None:
    """Goodput by requests and by prompt tokens, and the error of the forecasts, over the load."""
    figure, axes = pyplot.subplots(1, 3, figsize=(15, 4.5), layout="constrained")

    def error(line: Line, load: float) -> float:
        return of.forecast_errors(line, load)[0]

    for axis, measure, title in (
        (axes[0], of.goodput, "Goodput by requests, % of offered"),
        (axes[1], of.weighted, "Goodput by prompt tokens, % of offered"),
        (axes[2], error, "Forecast TTFT, mean absolute error in %"),
    ):
        for line in of.grid.lines:
            ours = line == OURS
            axis.plot(
                of.grid.loads,
                [100 * measure(line, load) for load in of.grid.loads],
                label=line.name,
                linewidth=2.5 if ours else 1.0,
                color="black" if ours else None,
                marker="o" if ours else None,
                markersize=4,
            )
        axis.set_xlabel("load, times the trace's speed")
        axis.set_title(title)
        axis.grid(alpha=0.3)
    axes[0].set_ylim(0, 101)
    axes[1].set_ylim(0, 101)
    axes[2].set_ylim(0, 300)
    axes[1].legend(fontsize=7, loc="lower left")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
