"""Records of a cube as JSON, and back. What is read is taken for hostile."""

from __future__ import annotations

import json
import math
import sys
import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from memserve.client.cube.values import CubeRefused

T = TypeVar("T")
INT_MAX = (1 << 63) - 1
SECONDS_MAX = 253_402_300_799
"""The end of the year 9999."""


def encoded(value: Any) -> bytes:
    """A frozen value, or a dict with such values, as JSON in its canonical form."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=asdict).encode()


def json_object(entry: str, content: bytes) -> dict[str, Any]:
    """Raises CubeRefused."""

    try:
        read = json.loads(content.decode(), parse_constant=_finite, parse_float=_finite)
        if b"\\u" in content:
            # Half of a surrogate pair is no text.
            json.dumps(read, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise CubeRefused(entry, "is no JSON") from None
    if not isinstance(read, dict):
        raise CubeRefused(entry, "is no JSON object")
    return read


def decoded(kind: type[T], entry: str, content: bytes) -> T:
    """Read what `encoded` wrote. Raises CubeRefused for a field that is unknown, missing or of another
    type.
    """
    return value_of(kind, entry, json_object(entry, content))


def value_of(kind: type[T], entry: str, read: object) -> T:
    """As `decoded`, of what was read from JSON."""
    value: T = _value(kind, read, entry, "")
    return value


def _finite(text: str) -> float:
    """Raises ValueError for a number that is none, or too large for a float."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _value(kind: Any, value: Any, entry: str, path: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _record(kind, value, entry, path)
    if origin in (Union, types.UnionType):
        inner = next(argument for argument in arguments if argument is not type(None))
        return None if value is None else _value(inner, value, entry, path)
    if origin is tuple:
        if not isinstance(value, list):
            raise _fault(entry, path, "a list")
        return tuple(
            _value(arguments[0], item, entry, f"{path}[{number}]") for number, item in enumerate(value)
        )
    if origin is dict:
        if not isinstance(value, dict):
            raise _fault(entry, path, "an object")
        return {name: _value(arguments[1], item, entry, f"{path}.{name}") for name, item in value.items()}
    if kind is float:
        if type(value) not in (int, float) or abs(value) > sys.float_info.max:
            raise _fault(entry, path, "a number")
        if path.endswith("_s") and not 0 <= value <= SECONDS_MAX:
            raise _fault(entry, path, "seconds from 1970 to 9999")
        return value
    wanted = str if issubclass(kind, str) else kind
    if type(value) is not wanted:
        raise _fault(entry, path, {str: "text", int: "a whole number", bool: "true or false"}[wanted])
    if isinstance(value, int) and abs(value) > INT_MAX:
        raise _fault(entry, path, "a whole number of 64 bits")
    return kind(value)


def _record(kind: Any, value: Any, entry: str, path: str) -> Any:
    if not isinstance(value, Mapping):
        raise _fault(entry, path, "an object")
    types_of = get_type_hints(kind)
    known = {field.name: field for field in fields(kind)}
    for name in value:
        if name not in known:
            raise CubeRefused(entry, f"{path}.{name[:80]} is unknown here".lstrip("."))
    for name, field in known.items():
        if name not in value and field.default is MISSING and field.default_factory is MISSING:
            raise CubeRefused(entry, f"{path}.{name} is missing".lstrip("."))
    return kind(
        **{name: _value(types_of[name], item, entry, f"{path}.{name}") for name, item in value.items()}
    )


def _fault(entry: str, path: str, what: str) -> CubeRefused:
    return CubeRefused(entry, f"{path[:200].lstrip('.') or 'it'} must be {what}")
