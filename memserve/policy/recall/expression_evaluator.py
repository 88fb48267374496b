"""Whether a condition holds, and which part of it does not.

A test is true, false or unknown. It is unknown when a name has no value, and when two values cannot be
compared (text with a number, an order of true and false). `not` of unknown is unknown. `and` is false when a
part is false, otherwise unknown when a part is unknown. `or` is true when a part is true, otherwise unknown
when a part is unknown. Only what is true holds.
Source: Kleene's strong logic of three values, as SQL has it for NULL.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any

from memserve.domain.memories import MetadataValue
from memserve.policy.recall.expression_nodes import (
    AllOf,
    AnyOf,
    Comparison,
    Constant,
    Has,
    Membership,
    Name,
    Node,
    Not,
    Operand,
    Operator,
    TextTest,
    Truthful,
    literal,
)

Values = Mapping[str, MetadataValue]
_SHOWN_CHARS = 48
_REASONS_MAX = 3

_TESTS: dict[Operator, Callable[[Any, Any], bool]] = {
    Operator.EQUAL: operator.eq,
    Operator.UNEQUAL: operator.ne,
    Operator.LESS: operator.lt,
    Operator.AT_MOST: operator.le,
    Operator.GREATER: operator.gt,
    Operator.AT_LEAST: operator.ge,
}
_EQUALITIES = (Operator.EQUAL, Operator.UNEQUAL)


class Truth(Enum):
    """The values of the logic."""

    TRUE = "true"
    FALSE = "false"
    UNKNOWN = "unknown"


def truth_of(node: Node, values: Values) -> Truth:
    match node:
        case AllOf(parts):
            return _all_of(truth_of(part, values) for part in parts)
        case AnyOf(parts):
            return negated(_all_of(negated(truth_of(part, values)) for part in parts))
        case Not(part):
            return negated(truth_of(part, values))
        case Has(name):
            return _truth(name.name in values)
        case Comparison(left, by, right):
            return _compare(value_of(left, values), by, value_of(right, values))
        case Membership(operand, items):
            return _is_among(value_of(operand, values), items)
        case Truthful(operand):
            value = value_of(operand, values)
            return _truth(value) if isinstance(value, bool) else Truth.UNKNOWN
        case TextTest(function, name, text):
            return _test_text(function, values.get(name.name), str(text.value))


def negated(truth: Truth) -> Truth:
    return {Truth.TRUE: Truth.FALSE, Truth.FALSE: Truth.TRUE, Truth.UNKNOWN: Truth.UNKNOWN}[truth]


def value_of(operand: Operand, values: Values) -> MetadataValue | None:
    """None: the name has no value."""
    return operand.value if isinstance(operand, Constant) else values.get(operand.name)


def why_not(node: Node, values: Values, wanted: Truth = Truth.TRUE) -> str:
    """Which part of a condition keeps it from what is wanted of it, in one line. It must be kept from it."""
    match node:
        case Not(part):
            return why_not(part, values, negated(wanted))
        case AllOf(parts) | AnyOf(parts):
            failing = [part for part in parts if truth_of(part, values) is not wanted]
            if isinstance(node, AllOf) == (wanted is Truth.TRUE):
                # One failing part is enough. What is false says more than what is unknown.
                failing.sort(key=lambda part: truth_of(part, values) is Truth.UNKNOWN)
                return why_not(failing[0], values, wanted)
            reasons = [why_not(part, values, wanted) for part in failing[:_REASONS_MAX]]
            if len(failing) > _REASONS_MAX:
                reasons.append(f"and {len(failing) - _REASONS_MAX} more")
            return "; ".join(reasons)
    holds = "holds" if truth_of(node, values) is Truth.TRUE else "does not hold"
    if isinstance(node, Has):
        return f"{node.name} is {'there' if node.name.name in values else 'not there'}"
    operands = [node.left, node.right] if isinstance(node, Comparison) else [_operand_of(node)]
    names = [operand.name for operand in operands if isinstance(operand, Name)]
    missing = [name for name in names if name not in values]
    if missing:
        return f"{_cut(str(node))}: {' and '.join(dict.fromkeys(missing))} has no value"
    if truth_of(node, values) is Truth.UNKNOWN:
        holds = "is neither true nor false" if isinstance(node, Truthful) else "compares unlike types"
    shown = ", ".join(f"{name} is {_shown(values[name])}" for name in dict.fromkeys(names))
    return f"{_cut(str(node))} {holds}" + (f": {shown}" if shown else "")


def _operand_of(node: Membership | Truthful | TextTest) -> Operand:
    return node.name if isinstance(node, TextTest) else node.operand


def _cut(text: str) -> str:
    return text if len(text) <= 2 * _SHOWN_CHARS else text[: 2 * _SHOWN_CHARS] + "…"


def _shown(value: MetadataValue) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(_shown(item) for item in value[:_REASONS_MAX])}" + (
            ", …]" if len(value) > _REASONS_MAX else "]"
        )
    if isinstance(value, str) and len(value) > _SHOWN_CHARS:
        return literal(value[:_SHOWN_CHARS] + "…")
    return literal(value)


def _truth(holds: bool) -> Truth:
    return Truth.TRUE if holds else Truth.FALSE


def _all_of(truths: Iterable[Truth]) -> Truth:
    unknown = False
    for truth in truths:
        if truth is Truth.FALSE:
            return truth
        unknown = unknown or truth is Truth.UNKNOWN
    return Truth.UNKNOWN if unknown else Truth.TRUE


def _compare(left: MetadataValue | None, by: Operator, right: MetadataValue | None) -> Truth:
    if not _alike(left, right) or (isinstance(left, bool | tuple) and by not in _EQUALITIES):
        return Truth.UNKNOWN
    return _truth(_TESTS[by](left, right))


def _alike(left: MetadataValue | None, right: MetadataValue | None) -> bool:
    """Whether two values are of types that can be compared. A bool is no number."""
    if left is None or right is None:
        return False
    if isinstance(left, bool) or isinstance(right, bool):
        return isinstance(left, bool) and isinstance(right, bool)
    if isinstance(left, int | float):
        return isinstance(right, int | float)
    return any(isinstance(left, kind) and isinstance(right, kind) for kind in (str, tuple))


def _is_among(value: MetadataValue | None, items: tuple[Constant, ...]) -> Truth:
    """Of a list of texts, one must be among the items. Items of another type equal nothing."""
    elements: tuple[MetadataValue | None, ...] = value if isinstance(value, tuple) else (value,)
    like = [item.value for item in items if _alike("" if isinstance(value, tuple) else value, item.value)]
    return _truth(any(element in like for element in elements)) if like else Truth.UNKNOWN


def _test_text(function: str, value: MetadataValue | None, text: str) -> Truth:
    """In a list, `contains` wants a text that equals this one, `starts_with` one that begins with it."""
    if isinstance(value, tuple):
        if function == "contains":
            return _truth(text in value)
        return _truth(any(element.startswith(text) for element in value))
    if isinstance(value, str):
        return _truth(text in value if function == "contains" else value.startswith(text))
    return Truth.UNKNOWN
