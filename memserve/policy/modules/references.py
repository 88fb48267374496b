"""How a request names a module: its name alone, an alias, or a version number."""

from __future__ import annotations

from dataclasses import dataclass

from memserve.domain.names import is_alias, split_reference
from memserve.errors import InvalidField

LIVE = "live"
REFERENCE_RULE = (
    "must be a module's name, name@alias or name@number: names have 1-64 of a-z 0-9 . _ - and start "
    "with a letter or a digit, aliases with a letter, numbers are from 1 to 999999999"
)


@dataclass(frozen=True, slots=True)
class Reference:
    """What a request names: a version number or an alias."""

    name: str
    alias: str
    """Empty where a version number is named."""
    number: int
    """0 where an alias is named."""

    def __str__(self) -> str:
        return f"{self.name}@{self.number or self.alias}"


def parse_reference(field: str, text: str) -> Reference:
    """Read a reference. A name alone means the module's alias `live`. Raises InvalidField."""
    parts = split_reference(text)
    if parts is None:
        raise InvalidField(field, REFERENCE_RULE)
    alias = "" if parts.number else parts.alias or LIVE
    return Reference(parts.name, alias, parts.number)


def check_alias_name(field: str, name: str) -> None:
    """Raises InvalidField."""
    if not is_alias(name):
        raise InvalidField(field, "must be 1-64 of a-z 0-9 . _ -, starting with a letter")
