"""How often something is used lately, from counts that are read now and then."""

from __future__ import annotations

import math
from dataclasses import dataclass

DAY_S = 86_400.0
FADES_S = 3 * DAY_S
"""Within so long a use comes to count a third."""


@dataclass(frozen=True, slots=True)
class UseRate:
    """Uses that fade. A new one knows of none."""

    faded: float = 0.0
    """The uses, each by how long ago it was."""
    at_s: float = 0.0
    """When they were so, in seconds since the epoch."""

    def counted(self, uses: float, now_s: float) -> UseRate:
        """With so many more uses since `at_s`; where the clock has gone back, as though it had not."""
        now_s = max(now_s, self.at_s)
        return UseRate(self.faded * _kept(now_s - self.at_s) + max(0.0, uses), now_s)

    def per_day(self, now_s: float) -> float:
        return self.faded * _kept(max(0.0, now_s - self.at_s)) / (FADES_S / DAY_S)


def _kept(seconds: float) -> float:
    return math.exp(-seconds / FADES_S)
