"""The fakes' log of held blocks."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Sequence


class FakeBlockLog:
    """Held keys and their numbered changes.

    It does what `memserve.worker.kv.block_log.BlockLog` does, without an import of vLLM.
    `tests/worker/kv/test_block_log.py` holds both to one contract.
    """

    def __init__(self) -> None:
        self.sequence = 0
        self.changed = asyncio.Event()
        self.held: dict[bytes, set[str]] = {}
        self._events: list[tuple[int, str, tuple[bytes, ...]]] = []

    def store(self, keys: Iterable[bytes], medium: str) -> None:
        keys = list(keys)
        new = [key for key in dict.fromkeys(keys) if key not in self.held]
        for key in keys:
            self.held.setdefault(key, set()).add(medium)
        if new:
            self._append("stored", new)

    def remove(self, keys: Iterable[bytes], medium: str) -> None:
        gone = []
        for key in keys:
            if medium in self.held.get(key, ()):
                self.held[key].discard(medium)
                if not self.held[key]:
                    del self.held[key]
                    gone.append(key)
        if gone:
            self._append("removed", gone)

    def clear(self) -> None:
        self.held.clear()
        self._append("reset", [])

    def leading(self, keys: Iterable[bytes]) -> tuple[int, int]:
        held = list(itertools.takewhile(self.held.__contains__, keys))
        return len(list(itertools.takewhile(lambda key: "GPU" in self.held[key], held))), len(held)

    def since(self, sequence: int | None) -> list[tuple[int, str, tuple[bytes, ...]]]:
        if sequence is None or sequence > self.sequence:
            return [(self.sequence, "reset", tuple(self.held))]
        return [event for event in self._events if event[0] > sequence]

    def _append(self, change: str, keys: Sequence[bytes]) -> None:
        self.sequence += 1
        self._events.append((self.sequence, change, tuple(keys)))
        self.changed.set()
