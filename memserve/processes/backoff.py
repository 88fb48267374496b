"""How long to wait before what has ended is started again."""

from __future__ import annotations

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
# What has run for this long counts as sound: the next pause is the first one again.
SETTLED_S = 60.0


def pause_s(failures: int) -> float:
    """failures: ends in a row, the latest too; at least 1. It doubles, up to half a minute."""
    return float(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(failures - 1, 16)))


def failures_now(failures: int, lived_s: float) -> int:
    """Ends in a row, with the one of something that ran for `lived_s` seconds."""
    return 1 if lived_s > SETTLED_S else failures + 1
