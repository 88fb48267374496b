"""Every kind of blocking work in the gateway has threads of its own."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import memserve

ROOT = Path(memserve.__file__).parent
FILES = sorted(
    path.relative_to(ROOT)
    for part in ("api", "gateway", "memory", "registry", "kv")
    for path in (ROOT / part).rglob("*.py")
)


@pytest.mark.parametrize("file", [*FILES, Path("turns.py")], ids=str)
def test_no_part_of_a_gateway_uses_asyncios_default_threads(file: Path) -> None:
    """They are six on two cores, for everything: what stalls one server would stop the tokenizer."""
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            assert node.func.attr not in ("to_thread", "getaddrinfo"), f"line {node.lineno}"
            if node.func.attr == "run_in_executor":
                first = node.args[0]
                assert not (isinstance(first, ast.Constant) and first.value is None), f"line {node.lineno}"
