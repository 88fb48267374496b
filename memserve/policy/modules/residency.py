"""Which module leaves an engine that is full when another comes, and how many may be kept from leaving."""

from __future__ import annotations

from collections.abc import Collection, Iterable


def leaves_first(held: Iterable[str], *, pinned: Collection[str], in_use: Collection[str]) -> str | None:
    """The least recently used module that nobody needs.

    held: digests, least recently used first. None: all of them are pinned or in use, so that none may leave.
    """
    return next((digest for digest in held if digest not in pinned and digest not in in_use), None)


def pins_at_most(capacity: int) -> int:
    """How many of the `capacity` modules that fit may be pinned: half of them, rounded down, and one at
    least.

    The rest stays for the modules that requests ask for.
    """
    return max(1, capacity // 2)
