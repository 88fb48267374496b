"""What a check raises, beside what crashes."""

from __future__ import annotations


class WrongValue(Exception):
    """A value that was never stored is accepted, one that was is refused, or replies depend on how they
    arrive.
    """


class Hang(Exception):
    """A reader that waits for bytes and has no room for any."""
