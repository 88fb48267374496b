"""Draws what the days were like."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot

from loadtests.modules.ladder.weeks import Weeks

mpl.use("svg")
# Without a date and random ids, equal results give equal files.
mpl.rcParams["svg.hashsalt"] = "memserve"
MIB = 1 << 20


def plot(ran: Mapping[str, Weeks], budget_bytes: int, path: Path) -> None:
    """The seconds of an answer about hot documents, and the bytes that are held, by day and way."""
    figure, (seconds, held) = pyplot.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for name, weeks in ran.items():
        days = sorted(weeks.hot_by_day)
        seconds.plot(days, [weeks.hot_by_day[day].mean_s for day in days], label=name)
        held.plot(
            range(1, len(weeks.bytes_by_day) + 1), [each / MIB for each in weeks.bytes_by_day], label=name
        )
    held.axhline(budget_bytes / MIB, color="black", linestyle=":", label="the budget")
    seconds.set_yscale("log")
    held.set_yscale("symlog", linthresh=16)
    seconds.set_title("Seconds of an answer about the hottest tenth")
    held.set_title("MiB that are held")
    for axis in (seconds, held):
        axis.set_xlabel("day")
        axis.grid(alpha=0.3)
    held.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
