"""No locale decides an encoding: every text that is read or written says its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("memserve", "loadtests", "protos", "tests")
# What opens text unless it is told otherwise, with the place of its mode and of its encoding among the
# arguments.
READS, WRITES, OPENS = {"read_text"}, {"write_text"}, {"open", "fdopen"}
RUNS = {"run", "Popen", "check_output", "check_call", "call"}


def without_encoding(tree: ast.AST) -> Iterator[int]:
    """The lines of calls whose text has the encoding of the locale."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = (
            node.func.attr
            if isinstance(node.func, ast.Attribute)
            else node.func.id
            if isinstance(node.func, ast.Name)
            else ""
        )
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        if "encoding" in keywords or None in keywords:
            continue
        runs = name in RUNS and any(
            isinstance(keywords.get(flag), ast.Constant) for flag in ("text", "universal_newlines")
        )
        reads = (name in READS and not node.args) or (name in WRITES and len(node.args) == 1)
        if runs or reads or (name in OPENS and _is_text(node, name, keywords)):
            yield node.lineno


def _is_text(node: ast.Call, name: str, keywords: dict[str | None, ast.expr]) -> bool:
    """Is it a file, opened as text? `open` of anything else has no mode."""
    builtin = isinstance(node.func, ast.Name) or name == "fdopen"
    place = 1 if builtin else 0
    mode = keywords.get("mode") or (node.args[place] if len(node.args) > place else None)
    if mode is None:
        return builtin and bool(node.args)
    return (
        isinstance(mode, ast.Constant)
        and isinstance(mode.value, str)
        and set(mode.value) <= set("rwax+t")
        and bool(mode.value)
    )


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_text_names_its_encoding(folder: str) -> None:
    without = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        if "pb" not in path.parts
        for line in without_encoding(ast.parse(path.read_bytes()))
    ]
    assert without == []


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("path.read_text()", True),
        ("path.read_text(encoding='utf-8')", False),
        ("path.write_text('x')", True),
        ("path.open('w')", True),
        ("path.open('rb')", False),
        ("path.open(mode='a')", True),
        ("open(name)", True),
        ("open(name, 'rb')", False),
        ("os.fdopen(7, 'w')", True),
        ("os.fdopen(7, 'wb')", False),
        ("subprocess.run(command, text=True)", True),
        ("subprocess.run(command, text=True, encoding='utf-8')", False),
        ("subprocess.run(command)", False),
        ("service.open()", False),
    ],
)
def test_the_check_finds_what_it_is_for(code: str, wrong: bool) -> None:
    assert bool(list(without_encoding(ast.parse(code)))) == wrong
