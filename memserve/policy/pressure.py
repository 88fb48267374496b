"""When an event loop has too much to do, tokens are joined: several in one message, each a little later.

A message costs the loop about the same however many tokens it has. The window is how long a token may wait
for others. It opens while the loop is late or busy, and closes when it is not. Pure.
"""

from __future__ import annotations

WINDOW_MAX_S = 0.020
"""No token waits longer than this for others."""
STEP_S = 0.0025
BUSY, IDLE = 0.85, 0.6
"""Shares of a core that the loop's thread uses: above BUSY the window opens, below IDLE it closes."""
LATE_S, EARLY_S = 0.010, 0.003
"""How late the loop's timers are: above LATE_S the window opens, below EARLY_S it may close."""


def next_window_s(window_s: float, late_s: float, busy: float) -> float:
    """The window for the next moment. It doubles under pressure, and shrinks by STEP_S without.

    late_s: the mean lateness of the loop's timers, lately. busy: the share of a core that its thread used.
    """
    if late_s > LATE_S or busy > BUSY:
        return min(max(2 * window_s, STEP_S), WINDOW_MAX_S)
    if late_s < EARLY_S and busy < IDLE:
        return max(window_s - STEP_S, 0.0)
    return window_s
