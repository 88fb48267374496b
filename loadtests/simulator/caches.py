"""The caches of the simulated fleet, in blocks: an engine's memory, a host's, and Redis."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence


class Holders:
    """Which workers hold a block in their own memory: one bit for each worker."""

    def __init__(self) -> None:
        self.masks: dict[int, int] = {}

    def add(self, block: int, bit: int) -> None:
        self.masks[block] = self.masks.get(block, 0) | bit

    def drop(self, block: int, bit: int) -> None:
        mask = self.masks.get(block, 0) & ~bit
        if mask:
            self.masks[block] = mask
        else:
            self.masks.pop(block, None)

    def leading(self, blocks: Sequence[int]) -> dict[int, int]:
        """By worker number: how many leading blocks it holds. Workers that hold none are left out."""
        found: dict[int, int] = {}
        get = self.masks.get
        alive = get(blocks[0], 0) if blocks else 0
        for depth, block in enumerate(blocks):
            still = alive & get(block, 0)
            if still != alive:
                _note(found, alive & ~still, depth)
            alive = still
            if not alive:
                return found
        _note(found, alive, len(blocks))
        return found


def _note(found: dict[int, int], bits: int, depth: int) -> None:
    while bits:
        low = bits & -bits
        found[low.bit_length() - 1] = depth
        bits ^= low


class LruTier:
    """Blocks, the least recently used of which goes first."""

    def __init__(self, capacity: int, dropped: Callable[[int], None] = lambda block: None) -> None:
        self._capacity = capacity
        self._blocks: OrderedDict[int, None] = OrderedDict()
        self._dropped = dropped

    def __contains__(self, block: int) -> bool:
        return block in self._blocks

    def put(self, blocks: Sequence[int]) -> None:
        known = self._blocks
        for block in blocks:
            if block in known:
                known.move_to_end(block)
            else:
                known[block] = None
        while len(known) > self._capacity:
            self._dropped(known.popitem(last=False)[0])

    def leading(self, blocks: Sequence[int]) -> int:
        known = self._blocks
        for depth, block in enumerate(blocks):
            if block not in known:
                return depth
        return len(blocks)


class DeviceCache:
    """An engine's KV memory as vLLM keeps it: counted references, and a free list in order of last use.

    A prompt's tail is freed first, so that of a chain the end is evicted before the start.
    """

    def __init__(self, capacity: int, dropped: Callable[[int], None]) -> None:
        self._capacity = capacity
        self._dropped = dropped
        self._used: dict[int, int] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()
        self._private = 0

    def __contains__(self, block: int) -> bool:
        return block in self._used or block in self._unused

    @property
    def free_blocks(self) -> int:
        """Blocks that no request uses."""
        return self._capacity - len(self._used) - self._private

    def reserve(self, hits: Sequence[int], total: int) -> bool:
        """Take room for a request of `total` blocks that finds `hits` here. False: there is not enough."""
        used, unused = self._used, self._unused
        revived = sum(block in unused for block in hits)
        if total - len(hits) + revived > self.free_blocks:
            return False
        for block in hits:
            if block in unused:
                del unused[block]
                used[block] = 1
            else:
                used[block] += 1
        self._private += total - len(hits)
        over = len(used) + len(unused) + self._private - self._capacity
        while over > 0:
            self._dropped(unused.popitem(last=False)[0])
            over -= 1
        return True

    def publish(self, blocks: Sequence[int]) -> list[int]:
        """Blocks of a request are computed now, and others find them. Returns those that are new here."""
        used, unused = self._used, self._unused
        new = []
        for block in blocks:
            if block in used:
                used[block] += 1  # computed twice; one copy stays
            elif block in unused:
                del unused[block]
                used[block] = 1
            else:
                used[block] = 1
                new.append(block)
            self._private -= 1
        return new

    def release(self, blocks: Sequence[int], private: int) -> None:
        """A request has ended. blocks: its prompt's, in order; private: its other blocks."""
        used, unused = self._used, self._unused
        for block in reversed(blocks):
            left = used[block] - 1
            if left:
                used[block] = left
            else:
                del used[block]
                unused[block] = None
        self._private -= private
