"""What a condition is made of, and how it is printed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

Literal = str | int | float | bool


class Operator(StrEnum):
    """A comparison of two operands."""

    EQUAL = "=="
    UNEQUAL = "!="
    LESS = "<"
    AT_MOST = "<="
    GREATER = ">"
    AT_LEAST = ">="


@dataclass(frozen=True, slots=True)
class Name:
    """Stands for a value that is given at evaluation."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """Typed: `1`, `1.0` and `true` are three constants."""

    value: Literal

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constant) and self._typed == other._typed

    def __hash__(self) -> int:
        return hash(self._typed)

    @property
    def _typed(self) -> tuple[type, Literal]:
        return type(self.value), self.value

    def __str__(self) -> str:
        return literal(self.value)


Operand = Name | Constant


@dataclass(frozen=True, slots=True)
class Comparison:
    """`left operator right`."""

    left: Operand
    operator: Operator
    right: Operand

    def __str__(self) -> str:
        return f"{self.left} {self.operator.value} {self.right}"


@dataclass(frozen=True, slots=True)
class Membership:
    """`operand in [items]`. `not in` is the negation of it."""

    operand: Operand
    items: tuple[Constant, ...]

    def __str__(self) -> str:
        return f"{self.operand} in [{', '.join(map(str, self.items))}]"


@dataclass(frozen=True, slots=True)
class Truthful:
    """A name or `true` or `false`, standing alone."""

    operand: Operand

    def __str__(self) -> str:
        return str(self.operand)


@dataclass(frozen=True, slots=True)
class Has:
    """Whether a name has a value."""

    name: Name

    def __str__(self) -> str:
        return f"has({self.name})"


@dataclass(frozen=True, slots=True)
class TextTest:
    """`contains(name, "text")` or `starts_with(name, "text")`."""

    function: str
    name: Name
    text: Constant

    def __str__(self) -> str:
        return f"{self.function}({self.name}, {self.text})"


@dataclass(frozen=True, slots=True)
class Not:
    """`not part`."""

    part: Node

    def __str__(self) -> str:
        if isinstance(self.part, Membership):
            return f"{self.part.operand} not in [{', '.join(map(str, self.part.items))}]"
        return f"not ({self.part})" if isinstance(self.part, AllOf | AnyOf) else f"not {self.part}"


@dataclass(frozen=True, slots=True)
class AllOf:
    """`and` of two or more parts, none of them an `and` itself."""

    parts: tuple[Node, ...]

    def __str__(self) -> str:
        return " and ".join(f"({part})" if isinstance(part, AnyOf) else str(part) for part in self.parts)


@dataclass(frozen=True, slots=True)
class AnyOf:
    """`or` of two or more parts, none of them an `or` itself."""

    parts: tuple[Node, ...]

    def __str__(self) -> str:
        return " or ".join(map(str, self.parts))


Node = Comparison | Membership | Truthful | Has | TextTest | Not | AllOf | AnyOf


def literal(value: Literal) -> str:
    """A value as an expression spells it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return repr(value)
    # What cannot be seen is escaped, and so is what would end a line.
    return "".join(
        sign if sign.isprintable() else json.dumps(sign)[1:-1]
        for sign in json.dumps(value, ensure_ascii=False)
    )


def names_of(node: Node) -> Iterator[str]:
    """Every name that a condition reads, as often as it does."""
    match node:
        case Comparison(left, _, right):
            operands: tuple[Operand, ...] = (left, right)
        case Membership(operand, _) | Truthful(operand):
            operands = (operand,)
        case Has(name) | TextTest(_, name, _):
            operands = (name,)
        case Not(part):
            operands = ()
            yield from names_of(part)
        case AllOf(parts) | AnyOf(parts):
            operands = ()
            for part in parts:
                yield from names_of(part)
    yield from (operand.name for operand in operands if isinstance(operand, Name))
