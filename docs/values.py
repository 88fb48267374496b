"""The values of the Helm chart, as the comments of its values.yaml document them.

A comment `# -- …` above a key says what it means, and `# @schema {…}` adds to the JSON schema that follows
from the key's default. `helm/generate.py` makes the chart's schema from the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from layout import head, one_line, table

CHART = Path(__file__).resolve().parents[1] / "helm" / "memserve"
INTRODUCTION = """
Values of the chart `helm/memserve`, from the comments of its values.yaml. A key that does not exist and a
value against its rule are refused by name. [Deploy on Kubernetes](../how-to/deploy-on-kubernetes.md) says how
to use them.
"""
KEY = re.compile(r"^( *)(\w+):")
TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}


@dataclass(slots=True)
class Value:
    """A key of values.yaml."""

    path: tuple[str, ...]
    default: Any
    text: str
    """What it means. Empty for a key that only holds others."""
    rule: dict[str, Any]
    """What `@schema` says."""
    children: dict[str, Value] = field(default_factory=dict)

    @property
    def schema(self) -> dict[str, Any]:
        """Of this key and all below it. Keys that are not named are refused."""
        if self.children:
            return {
                "type": "object",
                "properties": {name: child.schema for name, child in self.children.items()},
                "additionalProperties": False,
            }
        if "$ref" in self.rule:
            return self.rule
        kind = {} if self.default is None else {"type": TYPES[type(self.default)]}
        return {**kind, **self.rule, "description": self.text}

    def leaves(self) -> Iterator[Value]:
        if not self.children:
            yield self
        for child in self.children.values():
            yield from child.leaves()


def chart_values(chart: Path = CHART) -> Value:
    """The whole of values.yaml. Raises ValueError for a key without a comment, or a rule that is no JSON."""
    text = (chart / "values.yaml").read_text(encoding="utf-8")
    whole = Value((), yaml.safe_load(text), "", {})
    comments: list[str] = []
    # The keys that the line is below, with their indents.
    above: list[tuple[int, Value]] = [(-1, whole)]
    for line in text.splitlines():
        if line.strip().startswith("#"):
            comments.append(line.strip().removeprefix("#").removeprefix(" "))
        elif match := KEY.match(line):
            indent = len(match[1])
            while above[-1][0] >= indent:
                above.pop()
            parent = above[-1][1]
            if not is_leaf(parent):
                value = described((*parent.path, match[2]), parent.default[match[2]], comments)
                parent.children[match[2]] = value
                above.append((indent, value))
            comments = []
        else:
            comments = []
    for leaf in whole.leaves():
        if not leaf.text:
            raise ValueError(f"values.yaml: {'.'.join(leaf.path)} has no comment")
    return whole


def is_leaf(value: Value) -> bool:
    """Whether what is below the key is its value, and not keys of the chart's."""
    return bool(value.path) and (bool(value.text) or not isinstance(value.default, dict))


def described(path: tuple[str, ...], default: Any, comments: list[str]) -> Value:
    text: list[str] = []
    rule: dict[str, Any] = {}
    for line in comments:
        if line.startswith("@schema "):
            rule = json.loads(line.removeprefix("@schema "))
        elif line.startswith("-- "):
            text = [line.removeprefix("-- ")]
        elif text:
            text.append(line)
    return Value(path, default, one_line(" ".join(text)), rule)


# The page


def values_page() -> str:
    text = head("Values of the Helm chart", INTRODUCTION)
    columns = ("value", "default", "allowed", "meaning")
    whole = chart_values().children
    alone = [value for value in whole.values() if not value.children]
    text += "\n## At the top\n\n" + table(columns, [row(value) for value in alone])
    for name, value in whole.items():
        if value.children:
            rows = [row(leaf) for leaf in value.leaves()]
            text += f"\n## `{name}`\n\n" + table(columns, rows)
    return text


def row(value: Value) -> tuple[str, ...]:
    empty = value.default in (None, "")
    default = value.default if isinstance(value.default, str) else json.dumps(value.default)
    return f"`{'.'.join(value.path)}`", "" if empty else f"`{default}`", allowed(value.rule), value.text


def allowed(rule: dict[str, Any]) -> str:
    parts = [", ".join(f"`{word}`" for word in rule.get("enum", ()))]
    parts += [f"{sign} {rule[key]}" for key, sign in (("minimum", "≥"), ("maximum", "≤")) if key in rule]
    return ", ".join(part for part in parts if part)
