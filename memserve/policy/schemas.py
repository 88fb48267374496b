"""Which JSON Schemas an answer may be held to.

An engine makes a grammar of the schema before it answers. The parts that can make a small schema a large
grammar are refused or bounded, so that no schema stops an engine.
"""

from __future__ import annotations

import json
from typing import Any

from memserve.errors import InvalidField

SCHEMA_MAX_BYTES = 16 << 10
DEPTH_MAX = 16
NODES_MAX = 500
COUNT_MAX = 256
COUNTS = frozenset({"minLength", "maxLength", "minItems", "maxItems"})
PARTS = COUNTS | frozenset(
    {
        "$defs", "$ref", "$schema", "additionalProperties", "anyOf", "const", "default",
        "definitions", "description", "enum", "examples", "exclusiveMaximum", "exclusiveMinimum", "items",
        "maximum", "minimum", "oneOf", "prefixItems", "properties", "required", "title", "type",
    }
)  # fmt: skip
NAMED = frozenset({"properties", "$defs", "definitions"})
LISTED = frozenset({"anyOf", "oneOf", "prefixItems"})
SINGLE = frozenset({"items", "additionalProperties"})
LOCAL = ("#/$defs/", "#/definitions/")
BOUND_MAX = 1e15


def check_schema(field: str, text: str) -> None:
    """Raises InvalidField, with the place in the schema."""
    if len(text.encode()) > SCHEMA_MAX_BYTES:
        raise InvalidField(field, f"at most {SCHEMA_MAX_BYTES} bytes of JSON Schema")
    try:
        schema = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise InvalidField(field, "is no JSON") from None
    _check(field, field, schema, 0, [0])
    _check_references(field, schema)


def _check(field: str, place: str, schema: Any, depth: int, nodes: list[int]) -> None:
    nodes[0] += 1
    if depth > DEPTH_MAX or nodes[0] > NODES_MAX:
        raise InvalidField(field, f"at most {DEPTH_MAX} levels and {NODES_MAX} parts")
    if isinstance(schema, bool) and depth:
        return
    if not isinstance(schema, dict):
        raise InvalidField(place, "must be an object")
    for part, value in schema.items():
        here = f"{place}.{part[:64]}"
        if part not in PARTS:
            raise InvalidField(here, "is a part of JSON Schema that is not supported here")
        _check_part(field, here, part, value, depth, nodes)


def _check_references(field: str, schema: dict[str, Any]) -> None:
    """References lead to definitions, and not back to themselves before anything is said."""
    defined = {
        f"#/{place}/{name}": each
        for place in ("$defs", "definitions")
        for name, each in schema.get(place, {}).items()
    }

    def said(each: Any, passed: frozenset[str]) -> None:
        """Raises InvalidField where what `each` stands for stands for itself."""
        if not isinstance(each, dict):
            return
        if (target := each.get("$ref")) is not None:
            if target not in defined:
                raise InvalidField(field, f"refers to {target[:64]!r}, which it does not define")
            if target in passed:
                raise InvalidField(field, f"{target[:64]!r} refers to itself and says nothing")
            said(defined[target], passed | {target})
        for part in ("anyOf", "oneOf"):
            for member in each.get(part, ()):
                said(member, passed)

    def walk(each: Any) -> None:
        if isinstance(each, dict):
            said(each, frozenset())
        for inner in each.values() if isinstance(each, dict) else each if isinstance(each, list) else ():
            walk(inner)

    walk(schema)


def _check_part(field: str, here: str, part: str, value: Any, depth: int, nodes: list[int]) -> None:
    if part in NAMED:
        if not isinstance(value, dict):
            raise InvalidField(here, "must be an object of schemas")
        for name, each in value.items():
            _check(field, f"{here}.{name[:64]}", each, depth + 1, nodes)
    elif part in LISTED:
        if not isinstance(value, list) or not value:
            raise InvalidField(here, "must be a list of schemas")
        for number, each in enumerate(value):
            _check(field, f"{here}[{number}]", each, depth + 1, nodes)
    elif part in SINGLE:
        _check(field, here, value, depth + 1, nodes)
    elif part in COUNTS:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= COUNT_MAX:
            raise InvalidField(here, f"from 0 to {COUNT_MAX}")
    elif part == "$ref":
        if not isinstance(value, str) or not value.startswith(LOCAL):
            raise InvalidField(here, "must be #/$defs/ and a name")
    elif part in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not -BOUND_MAX <= value <= BOUND_MAX:
            raise InvalidField(here, f"a number from {-BOUND_MAX:g} to {BOUND_MAX:g}")


def _no_constant(name: str) -> Any:
    raise ValueError(name)
