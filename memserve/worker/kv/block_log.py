"""Which KV blocks the engine holds, as a numbered log that any number of gateways follow."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgspec
import zmq
import zmq.asyncio
from vllm.distributed.kv_events import (
    MEDIUM_GPU,
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    KVEventBatch,
)

LOG_EVENTS = 8192


class Change(Enum):
    """What happened to the keys of an event."""

    STORED = "stored"
    REMOVED = "removed"
    RESET = "reset"


@dataclass(frozen=True, slots=True)
class BlockEvent:
    """One numbered change."""

    sequence: int
    change: Change
    keys: tuple[bytes, ...]
    """The keys that were stored or removed. For RESET: all that are held now."""


class BlockLog:
    """The keys that the engine holds, and the last `LOG_EVENTS` changes.

    A key is held while any medium of the engine (device, host) has it. Belongs to the event loop's thread.
    """

    def __init__(self) -> None:
        self.sequence = 0
        self.changed = asyncio.Event()
        self._media: dict[bytes, set[str]] = {}
        self._events: deque[BlockEvent] = deque(maxlen=LOG_EVENTS)

    def store(self, keys: Iterable[bytes], medium: str) -> None:
        new = []
        for key in keys:
            if key not in self._media:
                new.append(key)
            self._media.setdefault(key, set()).add(medium)
        self._append(Change.STORED, new)

    def remove(self, keys: Iterable[bytes], medium: str) -> None:
        gone = []
        for key in keys:
            media = self._media.get(key)
            if media is not None:
                media.discard(medium)
                if not media:
                    del self._media[key]
                    gone.append(key)
        self._append(Change.REMOVED, gone)

    def clear(self) -> None:
        self._media.clear()
        self._append(Change.RESET, [], even_if_empty=True)

    def leading(self, keys: Iterable[bytes]) -> tuple[int, int]:
        """How many of a prompt's leading blocks are in device memory, and how many in any medium."""
        device = held = 0
        for number, key in enumerate(keys, start=1):
            media = self._media.get(key)
            if media is None:
                break
            held = number
            # vLLM calls its paged KV memory "GPU" on the CPU platform too.
            if device == number - 1 and MEDIUM_GPU in media:
                device = number
        return device, held

    def since(self, sequence: int | None) -> list[BlockEvent]:
        """The changes after `sequence`. One RESET when the log has forgotten them or `sequence` is None."""
        if sequence == self.sequence:
            return []
        if sequence is None or not self.sequence - len(self._events) <= sequence <= self.sequence:
            return [BlockEvent(self.sequence, Change.RESET, tuple(self._media))]
        return [event for event in self._events if event.sequence > sequence]

    def _append(self, change: Change, keys: list[bytes], even_if_empty: bool = False) -> None:
        if keys or even_if_empty:
            self.sequence += 1
            self._events.append(BlockEvent(self.sequence, change, tuple(keys)))
            self.changed.set()


async def follow_engine_events(endpoint: str, log: BlockLog) -> None:
    """Feed `log` from vLLM's event publisher at `endpoint` until cancelled.

    A gap in the numbering clears the log. The log is cleared at the end too, because changes until the next
    call are not seen. Raises what the decoder raises for a message that cannot be read.

    Source: vllm.distributed.kv_events, messages of [topic, 8-byte big-endian sequence, msgpack batch].
    """
    socket: Any = zmq.asyncio.Context.instance().socket(zmq.SUB)
    socket.setsockopt(zmq.LINGER, 0)
    socket.subscribe(b"")
    socket.connect(endpoint)
    decoder = msgspec.msgpack.Decoder(type=KVEventBatch)
    expected = 0
    try:
        while True:
            _, number, payload = await socket.recv_multipart()
            sequence = int.from_bytes(number, "big")
            if sequence != expected:
                log.clear()
            expected = sequence + 1
            for event in decoder.decode(payload).events:
                if isinstance(event, BlockStored):
                    log.store(event.block_hashes, event.medium or "")
                elif isinstance(event, BlockRemoved):
                    log.remove(event.block_hashes, event.medium or "")
                elif isinstance(event, AllBlocksCleared):
                    log.clear()
    except BaseException:
        log.clear()
        raise
    finally:
        socket.close()
