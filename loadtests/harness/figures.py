"""What the benchmarks share: options, bars, the table, the last line as JSON, and the exit status."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Bar:
    """A measured figure and its limit. A bar has `at_least` or `at_most`."""

    name: str
    figure: float
    at_least: float | None = None
    """The figure must reach this. None: no such limit."""
    at_most: float | None = None
    """The figure must not exceed this. None: no such limit."""

    @property
    def holds(self) -> bool:
        return (self.at_least is None or self.figure >= self.at_least) and (
            self.at_most is None or self.figure <= self.at_most
        )


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser of the command line with the two options that every benchmark has."""
    options = argparse.ArgumentParser(prog=f"python -m loadtests.{name}", description=description)
    options.add_argument("--quick", action="store_true", help="at most a minute, with less to go by")
    options.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    return options


def report(line: str) -> None:
    """Print a line about the progress, to stderr."""
    print(line, file=sys.stderr, flush=True)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table. The first column is aligned to the left, the other columns to the right."""
    cells = [[str(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(columns))]
    for row in cells:
        print(
            "  ".join(
                cell.ljust(width) if place == 0 else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
        )


def finish(bars: Sequence[Bar], figures: dict[str, object], as_json: bool) -> int:
    """Print which bars hold. Returns the exit status.

    figures: more entries of the JSON object.
    as_json: print the JSON object as the last line.
    """
    held = all(bar.holds for bar in bars)
    for bar in bars:
        limits = [("at least", bar.at_least), ("at most", bar.at_most)]
        rule = ", ".join(f"{words} {limit:g}" for words, limit in limits if limit is not None)
        print(f"{bar.name}: {bar.figure:.3g} ({rule}){'' if bar.holds else '  MISSED'}")
    print("every bar holds" if held else "a bar is missed")
    if as_json:
        print(
            json.dumps(
                {"holds": held, "bars": [{**asdict(bar), "holds": bar.holds} for bar in bars], **figures}
            )
        )
    return 0 if held else 1
