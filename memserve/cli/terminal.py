"""Consoles of the command line. What they print is text: never rich's markup, never a command to the
terminal.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from memserve.plain import paragraphs, plain

# What rich takes where nothing has a width.
FALLBACK_WIDTH = 80
PIPE_WIDTH = 10_000


class PlainConsole(Console):
    """Every string that it renders, printed or in a cell, goes through `plain`. Colours come with `style=`
    and `coloured`.

    In a file or a pipe nothing is wrapped: a digest is to be found there whole.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if not self.is_terminal and self.size.width == FALLBACK_WIDTH:
            self.width = PIPE_WIDTH

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(plain(text), **{**options, "markup": False, "emoji": False})


def coloured(word: str, style: str, rest: object = "") -> Text:
    """A word in a style, and the rest of the line as it is."""
    return Text.assemble((plain(word), style), plain(rest))


def cell(text: object) -> Text:
    """Text that may have several lines, for a table."""
    return Text(paragraphs(text))


def progress_bar(console: Console) -> Progress:
    """Descriptions of its tasks are text too, already `plain`."""
    description = TextColumn("{task.description}", markup=False)
    return Progress(
        description,
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
