"""An amount within the last minute, from the counts of two minutes of the clock.

Of the minute before, the part counts that lies within the last 60 seconds, as if it had come evenly.
"""

from __future__ import annotations

WINDOW_S = 60.0


def used(before: int, counted: int, part: float) -> float:
    """Within the last WINDOW_S. counted: since the window began. part: of the window that has passed."""
    return max(before, 0) * (1 - part) + max(counted, 0)


def seconds_until_below(before: int, counted: int, part: float, limit: int) -> float:
    """When `used` falls below the limit if nothing more comes."""
    if counted < limit:  # within this window
        return WINDOW_S * max(1 - (limit - counted) / max(before, 1) - part, 0.0)
    return WINDOW_S * (1 - part + 1 - limit / counted)
