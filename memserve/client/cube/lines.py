"""The lines of an export of memories, as far as a cube needs to know them. The gateway that imports them
checks them whole.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from memserve.client.cube.layout import LINE_MAX_BYTES, MEMORIES
from memserve.client.cube.records import json_object
from memserve.client.cube.values import CubeRefused

EXPORT_FORMAT = 1
_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class MemoryLine:
    """A memory of an export."""

    namespace: str
    memory_id: str
    history: bytes
    """A digest of all of it."""

    @property
    def key(self) -> bytes:
        """A digest of its name: a namespace may have millions."""
        return _digest(f"{self.namespace}\0{self.memory_id}".encode())


class Lines:
    """Reads the lines of one export, from its header to its trailer."""

    def __init__(self) -> None:
        self.namespaces: Counter[str] = Counter()
        """Memories that were read."""
        self._number = 0
        self._content = hashlib.sha256()
        self._is_ended = False

    def take(self, line: bytes) -> MemoryLine | None:
        """The next line, without its end. None: a header or a trailer. Raises CubeRefused."""
        self._number += 1
        if len(line) > LINE_MAX_BYTES:
            raise self._refused(f"has more than {LINE_MAX_BYTES} bytes")
        fields = json_object(f"{MEMORIES} line {self._number}", line)
        if self._number == 1:
            if fields.get("memserve_export") != EXPORT_FORMAT:
                raise self._refused(f"is no header of an export of format {EXPORT_FORMAT}")
            for namespace in _mapping(fields.get("namespaces")):
                self.namespaces[namespace] = 0
            return None
        if self._is_ended:
            raise self._refused("comes after the end")
        try:
            canonical = _canonical(fields)
        except RecursionError:
            raise self._refused("is nested too deep") from None
        if "memserve_export_end" in fields:
            self._is_ended = True
            if (fields.get("memories"), fields.get("sha256")) != (self.memories, self._content.hexdigest()):
                raise self._refused("does not fit the lines before it")
            return None
        self._content.update(canonical)
        try:
            memory = fields["memory"]["versions"][-1]["memory"]
            namespace, memory_id = memory["namespace"], memory["memory_id"]
        except (KeyError, TypeError, IndexError):
            raise self._refused("is no memory") from None
        named = isinstance(namespace, str) and isinstance(memory_id, str)
        if not named or namespace not in self.namespaces:
            raise self._refused("is of no namespace of the header")
        self.namespaces[namespace] += 1
        return MemoryLine(namespace, memory_id, _digest(canonical))

    @property
    def memories(self) -> int:
        return self.namespaces.total()

    def end(self) -> dict[str, int]:
        """Memories of each namespace. Raises CubeRefused where the trailer is missing."""
        if not self._is_ended:
            raise CubeRefused(MEMORIES, "has no last line: the export was cut off")
        return dict(self.namespaces)

    def _refused(self, why: str) -> CubeRefused:
        return CubeRefused(f"{MEMORIES} line {self._number}", why)


def memory_lines(lines: Iterable[bytes]) -> Iterator[MemoryLine]:
    """The memories among the lines of an export. Raises CubeRefused, also where the end is missing."""
    reader = Lines()
    for line in lines:
        if (memory := reader.take(line.rstrip(b"\n"))) is not None:
            yield memory
    reader.end()


class Known:
    """The memories that a gateway has already, by digests."""

    def __init__(self) -> None:
        self._histories: dict[bytes, bytes] = {}

    def add(self, line: MemoryLine) -> None:
        self._histories[line.key] = line.history

    def has_same(self, line: MemoryLine) -> bool | None:
        """None: there is no memory of this name. False: it has another history."""
        history = self._histories.get(line.key)
        return None if history is None else history == line.history


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()


def _canonical(line: dict[str, Any]) -> bytes:
    """As the gateway counts it in the trailer's digest."""
    return json.dumps(line, sort_keys=True, separators=(",", ":")).encode()
