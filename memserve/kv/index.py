"""Which workers hold which KV blocks. Pure: no I/O, no clock.

The caller sees to it that all changes arrive, in their order.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence

SHARDS = 256


class BlockIndex:
    """The block keys that each worker holds in its own memory, device or host.

    A block's entry is a number with one bit for each worker, so that one walk along a prompt finds what all
    workers hold of it. A worker's name stands for one incarnation: one that starts again has a new name or
    is reset. The bit of one that is gone is not counted from then on; `tidy` takes it out of the entries, a
    part at a time, and only then another worker gets it.
    """

    def __init__(self) -> None:
        # By a byte of the key's hash: a shard is what `tidy` does at a time.
        self._shards: list[dict[bytes, int]] = [{} for _ in range(SHARDS)]
        self._bits: dict[str, int] = {}
        self._workers: dict[int, str] = {}
        self._alive = 0
        self._held: Counter[str] = Counter()
        # Bits that no worker has: free, to be taken out of the entries, and being taken out.
        self._free: list[int] = []
        self._gone = self._leaving = 0
        self._next_shard = 0

    def reset(self, worker: str, keys: Iterable[bytes]) -> None:
        """The worker holds exactly these keys.

        For its first report, and for the first report after missed changes.
        """
        self.forget(worker)
        self.add(worker, keys)

    def add(self, worker: str, keys: Iterable[bytes]) -> None:
        bit = self._bit_of(worker)
        shards, new = self._shards, 0
        for key in keys:
            shard = shards[hash(key) & 255]
            mask = shard.get(key, 0)
            if not mask & bit:
                shard[key] = mask | bit
                new += 1
        self._held[worker] += new

    def remove(self, worker: str, keys: Iterable[bytes]) -> None:
        """Keys that the worker does not hold are passed over."""
        bit = self._bits.get(worker, 0)
        shards, gone = self._shards, 0
        for key in keys:
            shard = shards[hash(key) & 255]
            mask = shard.get(key, 0)
            if mask & bit:
                gone += 1
                if mask == bit:
                    del shard[key]
                else:
                    shard[key] = mask & ~bit
        self._held[worker] -= gone

    def forget(self, worker: str) -> None:
        """The worker is gone. An unknown worker is passed over."""
        bit = self._bits.pop(worker, 0)
        self._held.pop(worker, None)
        if bit:
            del self._workers[bit]
            self._alive &= ~bit
            self._gone |= bit

    def leading(self, keys: Sequence[bytes]) -> dict[str, int]:
        """How many of a prompt's leading blocks each worker holds. Workers that hold none are left out.

        keys: [blocks] from `memserve.kv.keys.block_keys`.
        """
        found: dict[str, int] = {}
        alive, shards = self._alive, self._shards
        for blocks, key in enumerate(keys):
            still = alive & shards[hash(key) & 255].get(key, 0)
            if still != alive:
                if blocks:
                    self._note(found, alive & ~still, blocks)
                if not still:
                    return found
                alive = still
        if keys:
            self._note(found, alive, len(keys))
        return found

    def longest_prefix(self, worker: str, keys: Sequence[bytes]) -> int:
        """How many of a prompt's leading blocks one worker holds: 0 to len(keys)."""
        return self.leading(keys).get(worker, 0)

    def held_blocks(self, worker: str) -> int:
        return self._held[worker]

    def tidy(self) -> bool:
        """Take workers that are gone out of a part of the entries. Returns whether there is more to do."""
        if not self._leaving:
            if not self._gone:
                return False
            self._leaving, self._gone, self._next_shard = self._gone, 0, 0
        shard, leaving = self._shards[self._next_shard], self._leaving
        for key in [key for key, mask in shard.items() if mask & leaving]:
            if left := shard[key] & ~leaving:
                shard[key] = left
            else:
                del shard[key]
        self._next_shard += 1
        if self._next_shard == SHARDS:
            for bit in _bits_of(leaving):
                heapq.heappush(self._free, bit)
            self._leaving = 0
        return bool(self._leaving or self._gone)

    def _bit_of(self, worker: str) -> int:
        if worker not in self._bits:
            unused = self._alive | self._gone | self._leaving
            bit = heapq.heappop(self._free) if self._free else 1 << unused.bit_length()
            self._bits[worker], self._workers[bit] = bit, worker
            self._alive |= bit
        return self._bits[worker]

    def _note(self, found: dict[str, int], bits: int, blocks: int) -> None:
        for bit in _bits_of(bits):
            found[self._workers[bit]] = blocks


def _bits_of(mask: int) -> Iterable[int]:
    """Each bit that is set, as a number with one bit."""
    while mask:
        bit = mask & -mask
        yield bit
        mask ^= bit
