"""How long to wait before a process that has ended is started again."""

from __future__ import annotations

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
# A process that has run for this long counts as sound. The next pause is the first one again.
SETTLED_S = 60.0


def pause_s(failures: int) -> float:
    """The pause doubles with each failure, up to half a minute.

    failures: ends in a row with the latest, at least 1.
    """
    return float(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(failures - 1, 16)))


def failures_now(failures: int, lived_s: float) -> int:
    """The ends in a row, after another end of a process that ran for `lived_s` seconds."""
    return 1 if lived_s > SETTLED_S else failures + 1
