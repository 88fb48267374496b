"""Calls of functions in what a model writes."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memserve.errors import InvalidField
from memserve.policy.schemas import check_schema
from memserve.policy.tool_calls import BEGIN, END, Call, CallReader, Form, Function, schema_of

WEATHER = Function(
    "weather", {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
)


def read(form: Form, pieces: list[str], name: str = "") -> tuple[str, list[Call]]:
    """All that is for a person, and the calls."""
    reader = CallReader(form, name)
    shown = "".join([reader.feed(piece) for piece in pieces])
    rest, calls = reader.end()
    return shown + rest, calls


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        (Form.ARGUMENTS, '{"city": "Oslo"}', [Call("weather", '{"city": "Oslo"}')]),
        (Form.LISTED, '[{"name": "a", "parameters": {"x": 1}}]', [Call("a", '{"x": 1}')]),
        (Form.MARKED, f'{BEGIN}\n{{"name": "a", "arguments": {{}}}}\n{END}', [Call("a", "{}")]),
        # The mark's end may be a token that is not shown.
        (Form.MARKED, f'{BEGIN}{{"name": "a", "arguments": "{{}}"}}', [Call("a", "{}")]),
        (
            Form.MARKED,
            f'{BEGIN}{{"name": "a"}}{END}\n{BEGIN}{{"name": "b"}}{END}',
            [Call("a", "{}"), Call("b", "{}")],
        ),
    ],
)
def test_calls_are_read(form: Form, text: str, expected: list[Call]) -> None:
    assert read(form, [text], "weather") == ("", expected)


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("broken", ['{"city": "Os', "[1]", "null", "[" * 100_000, '[{"name": 3}]'])
def test_what_is_no_call_is_text_and_nothing_is_lost(form: Form, broken: str) -> None:
    text = BEGIN + broken if form is Form.MARKED else broken
    assert read(form, [text], "weather") == (text, [])


@given(st.text(alphabet="<tol_ca>x{}/", max_size=60), st.lists(st.integers(0, 60), max_size=6))
def test_however_a_text_is_cut_the_same_is_read(text: str, cuts: list[int]) -> None:
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[begin:end] for begin, end in itertools.pairwise(places)]
    assert read(Form.MARKED, pieces) == read(Form.MARKED, [text])


def test_text_before_a_call_is_shown_at_once() -> None:
    reader = CallReader(Form.MARKED)
    assert reader.feed("I look it up. <to") == "I look it up. "
    assert reader.feed("morrow") == "<tomorrow"


def test_the_schema_of_calls_is_one_that_answers_may_be_held_to() -> None:
    with_definitions = Function(
        "sail",
        {
            "type": "object",
            "properties": {"to": {"$ref": "#/$defs/port"}},
            "$defs": {"port": {"type": "string"}},
        },
    )
    schema = schema_of([WEATHER, with_definitions], most=1)
    check_schema("tools", schema)
    assert json.loads(schema)["maxItems"] == 1
    other = Function("fly", {"type": "object", "$defs": {"port": {"type": "integer"}}})
    with pytest.raises(InvalidField, match="port"):
        schema_of([with_definitions, other])
