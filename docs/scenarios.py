"""The reference page of the scenarios of `memserve bench`, from the model that checks them."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from layout import head, one_line, table
from pydantic.fields import FieldInfo

from memserve.bench.scenario import Scenario, Table, bundled

INTRODUCTION = """
A scenario of `memserve bench` is a TOML file: a bundled one by its name, or your own by its path. A key that
does not exist, or a value against its rule, is refused by name. `--set TABLE.KEY=VALUE` goes before the file.
[Load-test it](../how-to/load-test.md) says how to use them.
"""


def scenarios_page() -> str:
    text = head("Scenarios", INTRODUCTION)
    text += "\n## Bundled\n\n" + table(
        ("name", "what"), [(f"`{name}`", title) for name, title in bundled().items()]
    )
    tables = {name: field for name, field in Scenario.model_fields.items() if table_of(field)}
    plain = {name: field for name, field in Scenario.model_fields.items() if name not in tables}
    text += section("Keys at the top", "", plain)
    for name, field in tables.items():
        model = table_of(field)
        assert model is not None
        text += section(f"`[{name}]`", one_line(model.__doc__), model.model_fields)
    return text


def section(title: str, introduction: str, fields: dict[str, FieldInfo]) -> str:
    rows = [
        (f"`{name}`", default(field), rules(field), str(field.description)) for name, field in fields.items()
    ]
    columns = ("key", "default", "allowed", "meaning")
    return f"\n## {title}\n\n" + (f"{introduction}\n\n" if introduction else "") + table(columns, rows)


def table_of(field: FieldInfo) -> type[Table] | None:
    """The table that a key holds. None: it holds a value."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, Table):
            return kind
    return None


def default(field: FieldInfo) -> str:
    if field.is_required() or field.default in (None, ""):
        return ""
    value = field.default
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def rules(field: FieldInfo) -> str:
    return ", ".join([*kinds(field.annotation), *bounds(field.metadata)])


def kinds(annotation: Any) -> Iterator[str]:
    if get_origin(annotation) is Literal:
        yield ", ".join(f"`{word}`" for word in get_args(annotation))
    elif isinstance(annotation, types.UnionType):
        yield from kinds(next(kind for kind in get_args(annotation) if kind is not types.NoneType))
    elif get_origin(annotation) is list:
        yield "a list of strings"
    elif annotation is bool:
        yield "`true`, `false`"
    elif annotation is int:
        yield "a whole number"


def bounds(metadata: list[Any]) -> Iterator[str]:
    for rule in metadata:
        for attribute, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
            if hasattr(rule, attribute):
                yield f"{sign} {getattr(rule, attribute)}"
        if hasattr(rule, "max_length"):
            yield f"at most {rule.max_length} long"
