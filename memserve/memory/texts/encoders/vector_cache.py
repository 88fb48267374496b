"""Embeddings of texts that have been embedded before, by a digest of the text."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from memserve.memory.texts.encoders.embedder import Floats

# An entry's key, its array's own fields and its place in the order, beside the numbers.
ENTRY_BYTES = 320


def cache_key(tenant: str, embedder: str, text: str, *, query: bool) -> bytes:
    """32 bytes. The tenant is part of it: a tenant must not see by the time of a call what others store."""
    whole = hashlib.sha256()
    for part in (tenant, embedder, "query" if query else "passage"):
        whole.update(part.encode())
        whole.update(b"\0")
    whole.update(text.encode("utf-8", "surrogatepass"))
    return whole.digest()


class VectorCache:
    """The most recently used vectors, bounded in bytes. It belongs to one event loop. It keeps no texts."""

    def __init__(self, max_bytes: int) -> None:
        """max_bytes: 0 keeps none."""
        self._max_bytes = max_bytes
        self._vectors: OrderedDict[bytes, Floats] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._vectors)

    def get(self, key: bytes) -> Floats | None:
        """[dim], not to be written to."""
        vector = self._vectors.get(key)
        if vector is not None:
            self._vectors.move_to_end(key)
        return vector

    def put(self, key: bytes, vector: Floats) -> None:
        self.drop(key)
        kept = vector.copy()  # a view would hold its whole batch
        kept.setflags(write=False)
        self._vectors[key] = kept
        self.bytes += kept.nbytes + ENTRY_BYTES
        while self.bytes > self._max_bytes:
            self.drop(next(iter(self._vectors)))

    def drop(self, key: bytes) -> bool:
        """Returns whether it was there."""
        vector = self._vectors.pop(key, None)
        if vector is None:
            return False
        self.bytes -= vector.nbytes + ENTRY_BYTES
        return True

    def clear(self) -> None:
        self._vectors.clear()
        self.bytes = 0
