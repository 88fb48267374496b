"""Which worker holds which KV blocks, from the workers' event streams. Pure: no I/O, no clock."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum


@dataclass(frozen=True, slots=True)
class BlocksStored:
    """`medium` is where the worker holds them: "GPU" (device memory, also on the CPU platform) or "CPU" (host tier)."""

    keys: tuple[bytes, ...]
    medium: str = "GPU"


@dataclass(frozen=True, slots=True)
class BlocksRemoved:
    keys: tuple[bytes, ...]
    medium: str = "GPU"


@dataclass(frozen=True, slots=True)
class BlocksCleared:
    """All device blocks are gone. The host tier's are not named by vLLM's event, so they are dropped too: too little is safe."""


BlockEvent = BlocksStored | BlocksRemoved | BlocksCleared


class Applied(Enum):
    """What became of a batch of events."""

    IN_ORDER = "in_order"
    AFTER_GAP = "after_gap"
    ALREADY_SEEN = "already_seen"


@dataclass(slots=True)
class _Holdings:
    last_sequence: int | None = None
    keys_by_medium: dict[str, set[bytes]] = field(default_factory=lambda: defaultdict(set))


class BlockIndex:
    """The block keys that each worker holds. A worker's name is one incarnation: a restarted worker has a new name.

    It errs towards too little: after a gap in a worker's sequence all that was known of it is dropped, for a removal may have been missed.
    """

    def __init__(self) -> None:
        self._workers: dict[str, _Holdings] = {}

    def apply(self, worker: str, sequence: int, events: Iterable[BlockEvent]) -> Applied:
        """Apply one batch. sequence: counts the worker's batches, without holes; batches may be repeated, and are then ignored."""
        holdings = self._workers.setdefault(worker, _Holdings())
        last = holdings.last_sequence
        if last is not None and sequence <= last:
            return Applied.ALREADY_SEEN
        in_order = sequence == (0 if last is None else last + 1)
        if not in_order:
            holdings.keys_by_medium.clear()
        holdings.last_sequence = sequence
        for event in events:
            match event:
                case BlocksStored(keys, medium):
                    holdings.keys_by_medium[medium].update(keys)
                case BlocksRemoved(keys, medium):
                    holdings.keys_by_medium[medium].difference_update(keys)
                case BlocksCleared():
                    holdings.keys_by_medium.clear()
        return Applied.IN_ORDER if in_order else Applied.AFTER_GAP

    def forget(self, worker: str) -> None:
        """The worker is gone. Unknown workers are fine."""
        self._workers.pop(worker, None)

    def longest_prefix(self, worker: str, keys: Sequence[bytes], *, medium: str | None = None) -> int:
        """How many of a prompt's leading blocks the worker holds.

        keys: [blocks] from `block_keys`. medium: only this one; None: a block counts wherever it is.
        Returns 0 to len(keys) blocks, not tokens.
        """
        holdings = self._workers.get(worker)
        if holdings is None:
            return 0
        held = [holdings.keys_by_medium.get(medium, set())] if medium else list(holdings.keys_by_medium.values())
        for blocks, key in enumerate(keys):
            if not any(key in media for media in held):
                return blocks
        return len(keys)

    def held_blocks(self, worker: str) -> int:
        """Distinct blocks that the worker holds in any medium."""
        holdings = self._workers.get(worker)
        return len(set().union(*holdings.keys_by_medium.values())) if holdings else 0
