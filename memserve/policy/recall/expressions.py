"""Conditions: a memory's `applies_when` over a request's context, and filters over a memory's fields.

    user.role == "admin" and (region in ["eu", "uk"] or not has(region))
    kind == "fact" and created_s >= 1735689600 and contains(keywords, "travel") and metadata.year > 2020

1. No regular expressions, no arithmetic and no attributes: `user.role` is a flat name.
2. A whole number and a float compare as numbers. A bool is no number. What cannot be compared is unknown.
3. A name without a value makes its test unknown, and so `not` of it. Only what is true holds
   (`expression_evaluator.py`). `has(name)` is always true or false.
4. Texts compare by code points, and capital letters count. The texts of memories are in NFC, and a
   condition's are taken in NFC.

`expression_parser.py` has the grammar and the bounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from memserve.domain.memories import Memory, MetadataValue
from memserve.errors import InvalidField
from memserve.policy.recall.expression_evaluator import Truth, truth_of, why_not
from memserve.policy.recall.expression_nodes import (
    AllOf,
    AnyOf,
    Comparison,
    Constant,
    Membership,
    Name,
    Node,
    Not,
    Operator,
    Truthful,
    names_of,
)
from memserve.policy.recall.expression_parser import parse_node

METADATA_PREFIX = "metadata."
FILTER_NAMES = frozenset(
    {
        "kind", "source", "author", "created_s", "updated_s", "valid_from_s", "valid_until_s", "version",
        "strength", "pinned", "within", "position", "memory_id", "keywords",
    }
)  # fmt: skip
_CREATED, _UPDATED, _KIND = "created_s", "updated_s", "kind"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a condition says of some values."""

    holds: bool
    why: str
    """One line for a person. When it does not hold: which part, and what the values are."""
    missing: tuple[str, ...] = ()
    """Names of the condition that have no value, in order."""


@dataclass(frozen=True, slots=True)
class Expression:
    """A condition that can be evaluated. Two are equal when they are made of the same tests."""

    root: Node
    text: str = field(compare=False)
    """As it was written."""

    @property
    def names(self) -> frozenset[str]:
        return frozenset(names_of(self.root))

    def evaluate(self, values: Mapping[str, MetadataValue]) -> Verdict:
        """values: what the names stand for. A name that is not there has no value."""
        missing = tuple(dict.fromkeys(name for name in names_of(self.root) if name not in values))
        if truth_of(self.root, values) is Truth.TRUE:
            return Verdict(True, "the condition holds", missing)
        return Verdict(False, why_not(self.root, values), missing)

    def __str__(self) -> str:
        """In its plainest spelling, which parses to an equal expression unless it became too long."""
        return str(self.root)


def parse(field: str, text: str) -> Expression:
    """The condition. It is immutable, can be hashed and pickled, and is worth keeping.

    field: which field of the request it is, for the error.
    text: at most 1 KiB of UTF-8, 64 tests and operators, 16 deep, lists of at most 64.
    Raises InvalidField with the character and the rule.
    """
    return Expression(parse_node(field, text), text)


def parse_filter(field: str, text: str) -> Expression:
    """A condition over a memory's fields. Raises InvalidField, also for a name that no memory has."""
    expression = parse(field, text)
    for name in names_of(expression.root):
        if name not in FILTER_NAMES and not (name.startswith(METADATA_PREFIX) and name != METADATA_PREFIX):
            known = ", ".join(sorted(FILTER_NAMES))
            raise InvalidField(field, f"{name} is no field of a memory; there are {known}, metadata.<key>")
    return expression


def filter_values(memory: Memory) -> dict[str, MetadataValue]:
    """What a filter's names stand for. `within` and `position` only in a document or a session."""
    values: dict[str, MetadataValue] = {
        f"{METADATA_PREFIX}{key}": value for key, value in memory.metadata.items()
    }
    values.update(
        kind=memory.kind.value,
        source=memory.source,
        author=memory.author,
        created_s=memory.created_s,
        updated_s=memory.updated_s,
        version=memory.version,
        strength=memory.strength,
        pinned=memory.pinned,
        memory_id=memory.memory_id,
        keywords=memory.keywords,
    )
    if memory.valid_from_s is not None:
        values["valid_from_s"] = memory.valid_from_s
    if memory.valid_until_s is not None:
        values["valid_until_s"] = memory.valid_until_s
    if memory.place.within:
        values.update(within=memory.place.within, position=memory.place.position)
    return values


@dataclass(frozen=True, slots=True)
class ColumnBounds:
    """What every memory has that a filter lets through. All bounds belong to the range.

    A store may look at such memories alone, and must still evaluate the filter.
    """

    kinds: frozenset[str] | None = None
    """None: any. Empty: the filter lets nothing through."""
    created_from_s: float = -math.inf
    created_until_s: float = math.inf
    updated_from_s: float = -math.inf
    updated_until_s: float = math.inf

    def both(self, other: ColumnBounds) -> ColumnBounds:
        kinds = self.kinds
        if other.kinds is not None:
            kinds = other.kinds if kinds is None else kinds & other.kinds
        return ColumnBounds(
            kinds,
            max(self.created_from_s, other.created_from_s),
            min(self.created_until_s, other.created_until_s),
            max(self.updated_from_s, other.updated_from_s),
            min(self.updated_until_s, other.updated_until_s),
        )

    def either(self, other: ColumnBounds) -> ColumnBounds:
        if self.kinds == frozenset():
            return other
        if other.kinds == frozenset():
            return self
        return ColumnBounds(
            None if self.kinds is None or other.kinds is None else self.kinds | other.kinds,
            min(self.created_from_s, other.created_from_s),
            max(self.created_until_s, other.created_until_s),
            min(self.updated_from_s, other.updated_from_s),
            max(self.updated_until_s, other.updated_until_s),
        )


_ANYTHING = ColumnBounds()
_NOTHING = ColumnBounds(frozenset())
_MIRRORED = {
    Operator.LESS: Operator.GREATER,
    Operator.AT_MOST: Operator.AT_LEAST,
    Operator.GREATER: Operator.LESS,
    Operator.AT_LEAST: Operator.AT_MOST,
}
_OPPOSITE = {
    Operator.EQUAL: Operator.UNEQUAL,
    Operator.UNEQUAL: Operator.EQUAL,
    Operator.LESS: Operator.AT_LEAST,
    Operator.AT_MOST: Operator.GREATER,
    Operator.GREATER: Operator.AT_MOST,
    Operator.AT_LEAST: Operator.LESS,
}


def column_bounds(expression: Expression) -> ColumnBounds:
    """The part of a filter that columns can answer. It leaves out no memory that the filter lets through."""
    return _bounds(expression.root, True)


def _bounds(node: Node, wanted: bool) -> ColumnBounds:
    """What a memory has for which the node is true, or false when that is wanted."""
    match node:
        case Not(part):
            return _bounds(part, not wanted)
        case AllOf(parts) | AnyOf(parts):
            bounds = [_bounds(part, wanted) for part in parts]
            joined = bounds[0]
            for bound in bounds[1:]:
                joined = joined.both(bound) if isinstance(node, AllOf) == wanted else joined.either(bound)
            return joined
        case Truthful(Constant(value)) if value is not wanted:
            return _NOTHING
        case Membership(Name(name), items) if name == _KIND and wanted:
            return ColumnBounds(frozenset(item.value for item in items if isinstance(item.value, str)))
        case Membership(Name(name), items) if name in (_CREATED, _UPDATED) and wanted:
            joined = _NOTHING
            for item in items:
                joined = joined.either(_compared(name, Operator.EQUAL, item))
            return joined
        case Comparison(Name(name), by, Constant() as constant):
            return _compared(name, by if wanted else _OPPOSITE[by], constant)
        case Comparison(Constant() as constant, by, Name(name)):
            by = _MIRRORED.get(by, by)
            return _compared(name, by if wanted else _OPPOSITE[by], constant)
    return _ANYTHING


def _compared(name: str, by: Operator, constant: Constant) -> ColumnBounds:
    value = constant.value
    if name == _KIND and by is Operator.EQUAL:
        return ColumnBounds(frozenset({value} if isinstance(value, str) else ()))
    if name not in (_CREATED, _UPDATED):
        return _ANYTHING
    if isinstance(value, bool | str):
        return _NOTHING
    from_s = value if by in (Operator.EQUAL, Operator.AT_LEAST, Operator.GREATER) else -math.inf
    until_s = value if by in (Operator.EQUAL, Operator.AT_MOST, Operator.LESS) else math.inf
    if name == _CREATED:
        return replace(_ANYTHING, created_from_s=from_s, created_until_s=until_s)
    return replace(_ANYTHING, updated_from_s=from_s, updated_until_s=until_s)
