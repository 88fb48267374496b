"""What the generators of `docs/reference/` share: heads, tables, one line of a text."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

WIDTH = 110
HEAD = "# {title}\n\n*Generated from the code by `docs/generate.py`; do not edit.*\n\n{introduction}\n"


def head(title: str, introduction: str) -> str:
    return HEAD.format(title=title, introduction=filled(introduction))


def filled(text: str) -> str:
    """A paragraph in lines of the documents' width. Code stays on one line."""
    kept = re.sub(r"`[^`]+`", lambda code: code[0].replace(" ", "\0"), one_line(text))
    lines = textwrap.fill(kept, WIDTH, break_long_words=False, break_on_hyphens=False)
    return lines.replace("\0", " ")


def table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table. A bar in a cell would end the cell."""
    lines = [columns, tuple("---" for _ in columns), *rows]
    return "".join(f"| {' | '.join(escaped(cell) for cell in row)} |\n" for row in lines)


def escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


def one_line(text: str | None) -> str:
    return " ".join((text or "").split())
