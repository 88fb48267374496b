"""Enumerations that grow."""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class OpenEnum(StrEnum):
    """An enumeration that a newer memserve may have more members of. A client reads those as UNKNOWN."""

    @classmethod
    def known(cls) -> tuple[Self, ...]:
        """Every member that means something: all but UNKNOWN, which is never sent and never stored."""
        return tuple(member for member in cls if member.name != "UNKNOWN")
