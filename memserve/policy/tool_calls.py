"""Functions that a model may call: what it is held to, and the calls in what it writes. Pure.

A model that must call is held to a JSON Schema of the calls. A model that may call writes them between the
marks of its chat template, `<tool_call>` and `</tool_call>`, as Hermes, Qwen and others do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from memserve.errors import InvalidField

BEGIN, END = "<tool_call>", "</tool_call>"
CALLS_MAX = 8
"""Of a model that must call."""
_MARKED = re.compile(f"{BEGIN}(.*?)(?:{END}|$)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Function:
    """That a model may call. parameters: JSON Schema of an object."""

    name: str
    parameters: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """That a model has made. arguments: JSON."""

    name: str
    arguments: str


class Form(Enum):
    """How calls stand in a text."""

    MARKED = "marked"
    LISTED = "listed"
    """The whole text is a JSON list of calls."""
    ARGUMENTS = "arguments"
    """The whole text is the arguments of one function."""


def schema_of(functions: Sequence[Function], *, most: int = CALLS_MAX) -> str:
    """The JSON Schema of at least one call of these functions, and at most `most`.

    Raises InvalidField for definitions of the same name in two functions.
    """
    definitions: dict[str, Any] = {}
    items = []
    for function in functions:
        parameters = dict(function.parameters)
        for name, definition in parameters.pop("$defs", {}).items():
            if definitions.setdefault(name, definition) != definition:
                raise InvalidField("tools", f"define $defs.{name} in two ways; give the two other names")
        items.append(
            {
                "type": "object",
                "properties": {"name": {"const": function.name}, "parameters": parameters},
                "required": ["name", "parameters"],
                "additionalProperties": False,
            }
        )
    schema: dict[str, Any] = {"type": "array", "minItems": 1, "maxItems": most, "items": {"anyOf": items}}
    return json.dumps(schema | ({"$defs": definitions} if definitions else {}))


class CallReader:
    """Takes an answer's text as it comes, and tells its calls from what a person is to read."""

    def __init__(self, form: Form, name: str = "") -> None:
        """name: of the only function, where the text is its arguments."""
        self._form = form
        self._name = name
        self._kept = ""

    def feed(self, text: str) -> str:
        """The part of the text so far that is for a person, and was not returned before."""
        self._kept += text
        if self._form is not Form.MARKED:
            return ""
        begin = self._kept.find(BEGIN)
        if begin < 0:
            begin = len(self._kept) - _begun(self._kept)
        shown, self._kept = self._kept[:begin], self._kept[begin:]
        return shown

    def end(self) -> tuple[str, list[Call]]:
        """The rest of the text for a person, and the calls. A call that cannot be read is text."""
        if self._form is Form.ARGUMENTS:
            calls = [Call(self._name, self._kept)] if isinstance(_json(self._kept), dict) else []
        elif self._form is Form.LISTED:
            listed = _json(self._kept)
            calls = _calls(listed, "parameters") if isinstance(listed, list) else []
        else:
            texts = [match[1] for match in _MARKED.finditer(self._kept)]
            calls = _calls([_json(text) for text in texts], "arguments")
        return ("" if calls else self._kept), calls


def _begun(text: str) -> int:
    """How many of the last characters may be the beginning of a mark."""
    return next((size for size in range(len(BEGIN) - 1, 0, -1) if text.endswith(BEGIN[:size])), 0)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _calls(read: Sequence[Any], field: str) -> list[Call]:
    """None at all where one of them is no call."""
    calls = []
    for each in read:
        if not (isinstance(each, dict) and isinstance(each.get("name"), str)):
            return []
        arguments = each.get(field, {})
        calls.append(Call(each["name"], arguments if isinstance(arguments, str) else json.dumps(arguments)))
    return calls
