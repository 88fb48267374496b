"""Every file and every function is short enough to be read at once, and every line fits the page."""

from __future__ import annotations

import ast
import re
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("memserve", "loadtests", "tests")
# Data (JSON, weights) has other suffixes.
SUFFIXES = {".py", ".lua", ".c"}
GENERATED = ("memserve/pb/", "memserve/client/_sync/")
PRAGMA = re.compile(r"\s+# (type: ignore|noqa)\b.*")
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_LINE_CHARS = 400, 60, 110
EXCEPTIONS: dict[str, str] = {}
"""What may be longer, as `faults` names it, and why. At most five, each of them still needed."""
MAX_EXCEPTIONS = 5


def width_chars(line: str) -> int:
    """As ruff measures a line: without a pragma at its end, and without combining characters."""
    visible = PRAGMA.sub("", line)
    return sum(unicodedata.category(character) not in ("Mn", "Me") for character in visible)


def faults(name: str, text: str) -> Iterator[tuple[str, str]]:
    """What is too long in a file: its place, and how long it is. A place is the file, file:function, or
    file:line.
    """
    lines = text.splitlines()
    if len(lines) > MAX_FILE_LINES:
        yield name, f"{len(lines)} lines"
    for number, line in enumerate(lines, 1):
        if (width := width_chars(line)) > MAX_LINE_CHARS:
            yield f"{name}:{number}", f"{width} characters"
    if name.endswith(".py"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                length = node.end_lineno - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    yield f"{name}:{node.name}", f"{length} lines"


@cache
def all_faults() -> dict[str, str]:
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    names = {path.relative_to(ROOT).as_posix(): path for path in sorted(paths)}
    return {
        place: fault
        for name, path in names.items()
        if not name.startswith(GENERATED)
        for place, fault in faults(name, path.read_text(encoding="utf-8"))
    }


def test_files_functions_and_lines_are_short() -> None:
    long = {place: fault for place, fault in all_faults().items() if place not in EXCEPTIONS}
    assert not long, "\n".join(f"{place}: {fault}" for place, fault in long.items())


def test_every_exception_is_still_needed() -> None:
    assert len(EXCEPTIONS) <= MAX_EXCEPTIONS
    assert all(EXCEPTIONS.values())
    assert EXCEPTIONS.keys() <= all_faults().keys()


def test_what_is_too_long_is_found() -> None:
    body = "    x = 1\n" * MAX_FUNCTION_LINES
    text = f"def long():\n{body}# {'x' * MAX_LINE_CHARS}\n" + "\n" * MAX_FILE_LINES
    places = [place for place, _ in faults("a.py", text)]
    assert places == ["a.py", f"a.py:{MAX_FUNCTION_LINES + 2}", "a.py:long"]
    short = "def short():\n" + "    x = 1\n" * (MAX_FUNCTION_LINES - 1)
    assert list(faults("a.py", short)) == []
