"""JSON Schemas that an answer may be held to: whatever passes makes a grammar, at once."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import xgrammar
from hypothesis import given, settings
from hypothesis import strategies as st

from memserve.errors import InvalidField
from memserve.policy.schemas import BOUND_MAX, COUNT_MAX, check_schema

SOON_S = 5.0
LEAVES = st.one_of(
    st.just({}),
    st.sampled_from(["string", "integer", "number", "boolean", "null"]).map(lambda kind: {"type": kind}),
    st.integers(0, COUNT_MAX).map(lambda most: {"type": "string", "maxLength": most}),
    st.integers(-int(BOUND_MAX), int(BOUND_MAX)).map(lambda least: {"type": "integer", "minimum": least}),
    st.lists(st.text(max_size=20), min_size=1, max_size=20).map(lambda texts: {"enum": texts}),
    st.just({"$ref": "#/$defs/x"}),
)


def deeper(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.builds(
            lambda items, most: {"type": "array", "items": items, "maxItems": most},
            inner,
            st.integers(0, COUNT_MAX),
        ),
        st.dictionaries(st.text(max_size=8), inner, max_size=30).map(
            lambda fields: {"type": "object", "properties": fields, "required": sorted(fields)[::2]}
        ),
        st.lists(inner, min_size=1, max_size=5).map(lambda members: {"anyOf": members}),
    )


SCHEMAS = st.recursive(LEAVES, deeper, max_leaves=40)


@settings(max_examples=150)
@given(SCHEMAS, SCHEMAS)
def test_what_passes_makes_a_grammar_at_once(schema: dict[str, Any], defined: dict[str, Any]) -> None:
    text = json.dumps({**schema, "$defs": {"x": defined}})
    try:
        check_schema("schema", text)
    except InvalidField:
        return
    begun_s = time.monotonic()
    xgrammar.Grammar.from_json_schema(text, any_whitespace=False)
    assert time.monotonic() - begun_s < SOON_S


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {f"p{number}": {"type": "integer"} for number in range(480)}},
        {"$defs": {"n": {"properties": {"c": {"items": {"$ref": "#/$defs/n"}}}}}, "$ref": "#/$defs/n"},
        {"type": "array", "prefixItems": [{"type": "string"}] * 200, "items": False},
    ],
)
def test_large_and_recursive_schemas_pass(schema: dict[str, Any]) -> None:
    check_schema("schema", json.dumps(schema))


@pytest.mark.parametrize("text", ["", "[]", "3", "true", '"x"', '{"minimum": NaN}', "{" * 20_000, '{"x": 1}'])
def test_what_is_no_schema_is_refused(text: str) -> None:
    with pytest.raises(InvalidField):
        check_schema("schema", text)
