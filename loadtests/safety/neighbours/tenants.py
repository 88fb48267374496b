"""What both tenants have: keys, a seed, words."""

from __future__ import annotations

QUIET_KEY, NOISY_KEY = "quiet-key-of-the-test", "noisy-key-of-the-test"
SEED = 13
WORDS = (
    "amber",
    "lantern",
    "harbour",
    "gate",
    "tower",
    "code",
    "opens",
    "north",
    "river",
    "bridge",
    "stone",
    "winter",
)
