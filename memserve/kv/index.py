"""Which worker holds which KV blocks. Pure: no I/O, no clock.

The caller sees to it that all changes arrive, in their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class BlockIndex:
    """The block keys that each worker holds in its own memory, device or host.

    A worker's name stands for one incarnation. A worker that starts again has a new name or is reset.
    """

    def __init__(self) -> None:
        self._held: dict[str, set[bytes]] = {}

    def reset(self, worker: str, keys: Iterable[bytes]) -> None:
        """The worker holds exactly these keys.

        For its first report, and for the first report after missed changes.
        """
        self._held[worker] = set(keys)

    def add(self, worker: str, keys: Iterable[bytes]) -> None:
        self._held.setdefault(worker, set()).update(keys)

    def remove(self, worker: str, keys: Iterable[bytes]) -> None:
        """Keys that the worker does not hold are passed over."""
        self._held.get(worker, set()).difference_update(keys)

    def forget(self, worker: str) -> None:
        """The worker is gone. An unknown worker is passed over."""
        self._held.pop(worker, None)

    def longest_prefix(self, worker: str, keys: Sequence[bytes]) -> int:
        """How many of a prompt's leading blocks the worker holds.

        keys: [blocks] from `memserve.kv.keys.block_keys`.
        Returns 0 to len(keys) blocks, not tokens; 0 for an unknown worker.
        """
        held = self._held.get(worker, set())
        return next((blocks for blocks, key in enumerate(keys) if key not in held), len(keys))

    def held_blocks(self, worker: str) -> int:
        return len(self._held.get(worker, ()))
