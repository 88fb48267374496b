"""Which module leaves a full engine when another has to be loaded, and how many modules may be pinned."""

from __future__ import annotations

from collections.abc import Collection, Iterable


def leaves_first(held: Iterable[str], *, pinned: Collection[str], in_use: Collection[str]) -> str | None:
    """The least recently used module that is neither pinned nor in use. None: no module may leave.

    held: digests, least recently used first.
    """
    return next((digest for digest in held if digest not in pinned and digest not in in_use), None)


def pins_at_most(capacity: int) -> int:
    """How many of the `capacity` modules that fit may be pinned: half of them, rounded down, and at least
    one.

    The other half is for the modules that requests ask for.
    """
    return max(1, capacity // 2)
