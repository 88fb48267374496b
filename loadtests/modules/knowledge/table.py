"""The table, its bars, and its plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.harness.figures import Bar
from loadtests.modules.knowledge.asking import RECALL_COLUMN, TEACHER, Figures, interval, share
from loadtests.modules.knowledge.rungs import CARTRIDGE, LORA, NOTHING, RECALL, Costs, Rung

KEPT = {"demo": "passage", "smollm2": "general"}
"""The column that shows what a rung has made the model forget."""
ABSTAINED = {"demo": "nothing"}
COLUMNS = (
    "rung", "right", "95 %", "÷ teacher", "own words", "forgotten", "abstains", "leaks", "text wins",
    "calibration", "TTFT ms", "ms a token", "computed", "bytes", "make s", "CPU s", "change s", "erase s",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """A rung of one model, over all seeds."""

    rung: Rung
    figures: tuple[Figures, ...]
    costs: tuple[Costs, ...]

    def share(self, column: str) -> float | None:
        """None: it was not asked."""
        asked = [each for each in self.figures if column in each.shares]
        count = sum(each.counts[column] for each in asked)
        if not count:
            return None
        return sum(each.shares[column] * each.counts[column] for each in asked) / count

    def count(self, column: str) -> int:
        return sum(each.counts.get(column, 0) for each in self.figures)

    def mean(self, values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    def as_json(self, world: str, rows: Mapping[Rung, Row]) -> dict[str, float | None]:
        """The figures by plain names."""
        nothing = rows[NOTHING]
        teacher, right = nothing.share(TEACHER), self.share(RECALL_COLUMN)
        low, high = interval(right or 0.0, self.count(RECALL_COLUMN))
        kept = KEPT[world]
        return {
            "right": right,
            "right_low": low,
            "right_high": high,
            "right_of_teacher": None if not teacher or right is None else right / teacher,
            "own_words": self.share("paraphrase"),
            "forgotten": _less(nothing.share(kept), self.share(kept)),
            "abstains": self.share(ABSTAINED[world]) if world in ABSTAINED else None,
            "leaks": self.share("leak"),
            "text_wins": self.share("text_wins"),
            "calibration": self.mean([each.calibration for each in self.figures]),
            "ttft_ms": self.mean([each.ttft_ms for each in self.figures]),
            "tpot_ms": self.mean([each.tpot_ms for each in self.figures]),
            "computed_tokens": self.mean([each.computed_tokens for each in self.figures]),
            "resident_bytes": self.mean([each.resident_bytes for each in self.costs]),
            "make_s": self.mean([each.make_s for each in self.costs]),
            "make_cpu_s": self.mean([each.make_cpu_s for each in self.costs]),
            "change_s": self.mean([each.change_s for each in self.costs]),
            "erase_s": self.mean([each.erase_s for each in self.costs]),
            "gate_passed": share([each.notes == ["passed"] for each in self.costs])
            if any(each.notes for each in self.costs)
            else None,
        }


def _less(base: float | None, own: float | None) -> float | None:
    return None if base is None or own is None else base - own


def printed(name: str, figures: Mapping[str, float | None]) -> tuple[str, ...]:
    """A row of the table, for a person."""

    def shown(key: str, places: int) -> str:
        value = figures[key]
        return "-" if value is None else f"{value:.{places}f}"

    size = figures["resident_bytes"]
    return (
        name, shown("right", 2), f"{figures['right_low']:.2f}-{figures['right_high']:.2f}",
        *(shown(key, 2) for key in ("right_of_teacher", "own_words", "forgotten", "abstains", "leaks",
                                    "text_wins", "calibration")),
        *(shown(key, 1) for key in ("ttft_ms", "tpot_ms")), shown("computed_tokens", 0),
        "-" if size is None else _size(size),
        *(shown(key, 1) for key in ("make_s", "make_cpu_s", "change_s", "erase_s")),
    )  # fmt: skip


def _size(size: float) -> str:
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def bars_of(world: str, rows: Mapping[Rung, dict[str, float | None]], *, trained: bool) -> list[Bar]:
    """trained: whether the modules had their recipes' own steps."""
    bars = [
        Bar(f"{world}: right without any memory", rows[NOTHING]["right"] or 0.0, at_most=0.1),
        Bar(f"{world}: recall ÷ teacher", rows[RECALL]["right_of_teacher"] or 0.0, at_least=0.85),
    ]
    if trained:
        bars += [
            Bar(f"{world}: {rung.name} ÷ teacher", rows[rung]["right_of_teacher"] or 0.0, at_least=0.9)
            for rung in (CARTRIDGE, LORA)
        ]
    return bars


def write_report(tables: Mapping[str, Mapping[Rung, dict[str, float | None]]], folder: Path) -> Path:
    """Write report.md and a plot for each model. Returns the path of report.md."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["# The same facts by every memory", ""]
    for world, rows in tables.items():
        _plot(world, rows, folder / f"{world}.svg")
        lines += [f"## {world}", "", f"![{world}]({world}.svg)", ""]
        lines += [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
        lines += [f"| {' | '.join(printed(rung.name, row))} |" for rung, row in rows.items()]
        lines += [""]
    path = folder / "report.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _plot(world: str, rows: Mapping[Rung, dict[str, float | None]], path: Path) -> None:
    """Right answers over the time to the first token, and what making and changing take."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "memserve"
    from matplotlib import pyplot

    figure, (answers, times) = pyplot.subplots(1, 2, figsize=(13, 4.8), layout="constrained")
    for rung, row in rows.items():
        right, low, high = row["right"] or 0.0, row["right_low"] or 0.0, row["right_high"] or 0.0
        x = row["ttft_ms"] or 0.0
        answers.errorbar(x, right, yerr=[[right - low], [high - right]], fmt="o", capsize=3)
        answers.annotate(rung.name, (x, right), xytext=(6, 4), textcoords="offset points", fontsize=9)
    answers.set_xlabel("Time to the first token, ms (median)")
    answers.set_ylabel("Held-out questions right, 95 % interval")
    answers.set_ylim(-0.05, 1.05)
    shown = [rung for rung in rows if rows[rung]["make_s"]]
    places = range(len(shown))
    for offset, (key, label) in enumerate(
        (("make_s", "make"), ("change_s", "change one fact"), ("erase_s", "erase one fact"))
    ):
        heights = [max(rows[rung][key] or 0.0, 1e-3) for rung in shown]
        times.bar([place + 0.27 * (offset - 1) for place in places], heights, 0.25, label=label)
    times.set_yscale("log")
    times.set_ylabel("Seconds")
    times.set_xticks(list(places), [rung.name for rung in shown], rotation=20, ha="right", fontsize=9)
    times.legend(frameon=False)
    figure.suptitle(f"24 facts by every memory: {world}")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
