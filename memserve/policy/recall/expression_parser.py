"""From the text of a condition to its nodes, in time linear in the text.

condition  = all_of {"or" all_of}
all_of     = negation {"and" negation}
negation   = "not" negation | "(" condition ")" | test
test       = "has" "(" name ")"
           | ("contains" | "starts_with") "(" name "," string ")"
           | operand [operator operand | ["not"] "in" "[" literal {"," literal} "]"]
operand    = name | literal
operator   = "==" | "!=" | "<" | "<=" | ">" | ">="
literal    = string | number | "true" | "false"
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from memserve.errors import InvalidField
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
)

TEXT_MAX_BYTES = 1024
NODES_MAX = 64
DEPTH_MAX = 16
ITEMS_MAX = 64
NAME_MAX_CHARS = 80
_INT_MAX = 2**63

# No alternative begins as another one does, and no repetition stands in another: linear time.
_TOKEN = re.compile(
    r"""
    (?P<space>[ \t\r\n]+)
    | (?P<string>"(?:[^"\\\x00-\x1f]|\\.)*" | '(?:[^'\\\x00-\x1f]|\\.)*')
    | (?P<number>-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)(?![A-Za-z0-9_.])
    | (?P<word>[A-Za-z_][A-Za-z0-9_.-]*)
    | (?P<sign>[=!<>]=|[<>()\[\],])
    """,
    re.VERBOSE,
)
_RESERVED = frozenset({"and", "or", "not", "in", "true", "false"})
_OPERATORS = frozenset(operator.value for operator in Operator)
_FUNCTIONS = frozenset({"has", "contains", "starts_with"})
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)")
_ESCAPED = {'"': '"', "'": "'", "\\": "\\", "/": "/", "n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}


class _Token(NamedTuple):
    kind: str
    text: str
    place: int
    """The character that it begins at, from 1."""


def parse_node(field: str, text: str) -> Node:
    """Raises InvalidField, which says at which character which rule is broken."""
    try:
        size_bytes = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidField(field, "must be valid Unicode") from None
    if size_bytes > TEXT_MAX_BYTES:
        raise InvalidField(field, f"must be at most {TEXT_MAX_BYTES} bytes of UTF-8, is {size_bytes}")
    return _Parser(field, text).whole()


class _Parser:
    def __init__(self, field: str, text: str) -> None:
        self._field = field
        self._tokens = self._split(text)
        self._next = 0
        self._nodes = 0
        self._depth = 0

    def whole(self) -> Node:
        node = self._condition()
        if self._token.kind != "end":
            self._expected("'and', 'or' or the end")
        return node

    def _split(self, text: str) -> list[_Token]:
        tokens: list[_Token] = []
        start = 0
        while start < len(text):
            match = _TOKEN.match(text, start)
            if match is None:
                self._refuse_sign(text, start)
            if match.lastgroup != "space":
                tokens.append(_Token(str(match.lastgroup), match[0], start + 1))
            start = match.end()
        return [*tokens, _Token("end", "", len(text) + 1)]

    def _refuse_sign(self, text: str, start: int) -> NoReturn:
        sign = text[start]
        if sign in "\"'":
            self._refuse(start + 1, "a string must end on its line, with the sign that it began with")
        if sign == "=":
            self._refuse(start + 1, "'=' is no operator; write '=='")
        if sign in "-0123456789":
            self._refuse(start + 1, "this is no number; a number is such as 12, -3 or 1.5e3")
        self._refuse(start + 1, f"{sign!a} has no meaning outside a string")

    def _refuse(self, place: int, rule: str) -> NoReturn:
        raise InvalidField(self._field, f"character {place}: {rule}")

    def _expected(self, what: str) -> NoReturn:
        token = self._token
        instead = "the end" if token.kind == "end" else token.text[:32]
        hint = ""
        if token.kind == "word" and token.text.lower() in _RESERVED and token.text not in _RESERVED:
            hint = f" (write '{token.text.lower()}')"
        self._refuse(token.place, f"expected {what}, found {instead}{hint}")

    @property
    def _token(self) -> _Token:
        return self._tokens[self._next]

    def _at(self, text: str) -> bool:
        return self._token.kind in ("word", "sign") and self._token.text == text

    def _take(self, text: str) -> bool:
        """Whether the next token is this one. Then it is passed."""
        taken = self._at(text)
        self._next += taken
        return taken

    def _need(self, text: str) -> None:
        if not self._take(text):
            self._expected(f"'{text}'")

    def _count(self, place: int) -> None:
        self._nodes += 1
        if self._nodes > NODES_MAX:
            self._refuse(place, f"at most {NODES_MAX} tests and operators are allowed")

    def _condition(self) -> Node:
        return self._series("or", lambda: self._series("and", self._negation, AllOf), AnyOf)

    def _series(self, word: str, part: Callable[[], Node], series: type[AllOf] | type[AnyOf]) -> Node:
        parts = [part()]
        while self._at(word):
            self._count(self._token.place)
            self._next += 1
            parts.append(part())
        flat: list[Node] = []
        for node in parts:
            flat.extend(node.parts if isinstance(node, series) else (node,))
        return parts[0] if len(parts) == 1 else series(tuple(flat))

    def _negation(self) -> Node:
        place = self._token.place
        if not (self._at("not") or self._at("(")):
            return self._test()
        if self._depth == DEPTH_MAX:
            self._refuse(place, f"'not' and '(' may stand at most {DEPTH_MAX} deep")
        self._depth += 1
        if self._take("not"):
            self._count(place)
            node: Node = Not(self._negation())
        else:
            self._next += 1
            node = self._condition()
            self._need(")")
        self._depth -= 1
        return node

    def _test(self) -> Node:
        self._count(self._token.place)
        token, after = self._token, self._tokens[min(self._next + 1, len(self._tokens) - 1)]
        if token.kind == "word" and after.kind == "sign" and after.text == "(":
            return self._function()
        operand = self._operand()
        if self._token.kind == "sign" and self._token.text in _OPERATORS:
            operator = Operator(self._token.text)
            self._next += 1
            return Comparison(operand, operator, self._operand())
        if self._take("in"):
            return Membership(operand, self._items())
        if self._at("not"):
            self._count(self._token.place)
            self._next += 1
            self._need("in")
            return Not(Membership(operand, self._items()))
        if isinstance(operand, Constant) and not isinstance(operand.value, bool):
            self._expected("an operator, because text and numbers alone are neither true nor false")
        return Truthful(operand)

    def _function(self) -> Node:
        function = self._token
        if function.text not in _FUNCTIONS:
            self._expected(f"one of the functions {', '.join(sorted(_FUNCTIONS))}")
        self._next += 1
        self._need("(")
        name = self._name()
        if function.text == "has":
            self._need(")")
            return Has(name)
        self._need(",")
        place = self._token.place
        text = self._literal("a string")
        if not isinstance(text.value, str):
            self._refuse(place, "expected a string")
        self._need(")")
        return TextTest(function.text, name, text)

    def _items(self) -> tuple[Constant, ...]:
        self._need("[")
        items = [self._literal("text, a number, true or false")]
        while self._take(","):
            if len(items) == ITEMS_MAX:
                self._refuse(self._token.place, f"a list has at most {ITEMS_MAX} items")
            items.append(self._literal("text, a number, true or false"))
        self._need("]")
        return tuple(items)

    def _operand(self) -> Operand:
        token = self._token
        if token.kind == "word" and token.text not in _RESERVED:
            return self._name()
        return self._literal("a name, text, a number, true, false, 'not' or '('")

    def _name(self) -> Name:
        token = self._token
        if token.kind != "word" or token.text in _RESERVED:
            self._expected("a name")
        if token.text != token.text.lower():
            self._refuse(token.place, "names and words such as 'and' are written in lower case")
        if len(token.text) > NAME_MAX_CHARS:
            self._refuse(token.place, f"a name has at most {NAME_MAX_CHARS} characters")
        self._next += 1
        return Name(token.text)

    def _literal(self, what: str) -> Constant:
        token = self._token
        if token.kind == "string":
            value: str | int | float | bool = self._string(token)
        elif token.kind == "number":
            value = self._number(token)
        elif token.kind == "word" and token.text in ("true", "false"):
            value = token.text == "true"
        else:
            self._expected(what)
        self._next += 1
        return Constant(value)

    def _number(self, token: _Token) -> int | float:
        if any(sign in token.text for sign in ".eE"):
            number = float(token.text)
            if not math.isfinite(number):
                self._refuse(token.place, "the number is too large")
            return number
        whole = int(token.text)
        if not -_INT_MAX <= whole < _INT_MAX:
            self._refuse(token.place, "a whole number has at most 64 bits")
        return whole

    def _string(self, token: _Token) -> str:
        """The text of a string, in NFC, as the texts of memories are."""

        def unescaped(match: re.Match[str]) -> str:
            escape = match[1]
            if len(escape) == 5:
                return str(json.loads(f'"\\{escape}"'))
            if escape not in _ESCAPED:
                self._refuse(
                    token.place + match.start() + 1, "the escapes are \\\" \\' \\\\ \\n \\t \\r \\uXXXX"
                )
            return _ESCAPED[escape]

        text = _ESCAPE.sub(unescaped, token.text[1:-1])
        # A character beyond U+FFFF is escaped by two surrogates, as in JSON.
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        if "\ufffd" in text:
            self._refuse(token.place, "must be valid Unicode, without U+FFFD and lone surrogates")
        return unicodedata.normalize("NFC", text)
