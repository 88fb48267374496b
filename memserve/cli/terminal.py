"""Consoles of the command line. They print only text: no markup of rich, and no command to the terminal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from memserve.plain import paragraphs, plain

# The width that rich assumes when it cannot find out the terminal's width.
FALLBACK_WIDTH = 80
PIPE_WIDTH = 10_000


class PlainConsole(Console):
    """A console that shows every string as plain text.

    Every string goes through `plain`, both printed strings and cells of tables. Colours come only from
    `style=` and `coloured`. In a file or a pipe nothing is wrapped, so that a search finds a whole digest.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, **options)
        if not self.is_terminal and self.size.width == FALLBACK_WIDTH:
            self.width = PIPE_WIDTH

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(plain(text), **{**options, "markup": False, "emoji": False})


out = PlainConsole()
err = PlainConsole(stderr=True)


def coloured(word: str, style: str, rest: object = "") -> Text:
    """A word in a style, and the rest of the line without one."""
    return Text.assemble((plain(word), style), plain(rest))


def line(text: object) -> Text:
    """A line of its own, among what is printed together."""
    return Text(plain(text))


def cell(text: object) -> Text:
    """Text that may have several lines, for a table."""
    return Text(paragraphs(text))


def reporter() -> Callable[[str], None]:
    """A function that prints a line on standard error, with the seconds since `reporter` was called."""
    started_s = time.monotonic()

    def report(line: str) -> None:
        elapsed = f"{time.monotonic() - started_s:6.1f} s"
        err.print(coloured(elapsed, "dim", f"  {line}"), soft_wrap=True)

    return report


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on standard error if that is a terminal.

    Gives a function that takes how much is done and how much there is to do.
    """
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )
    with bar:
        task = bar.add_task(plain(title), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
