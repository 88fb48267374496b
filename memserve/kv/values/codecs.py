"""How a chunk is encoded for Redis, one class for each `Codec`. The classes have no state: any thread may use
them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from memserve.kv.values.envelope import Buffer, Codec
from memserve.kv.values.int8 import ChunkLayout, from_int8, to_int8
from memserve.kv.values.lossless import compress, compressed_limit_bytes, decompress


class ChunkCodec(Protocol):
    """Encodes chunks, and decodes them."""

    code: ClassVar[Codec]
    """As the header names it."""
    fixed_length: ClassVar[bool]
    """Whether every payload is as long as `limit_bytes` says."""

    def limit_bytes(self, chunk_bytes: int) -> int:
        """The longest payload of a chunk of this length."""
        ...

    def encode(self, chunk: Buffer) -> Buffer:
        """The payload. Raises ValueError for a chunk that has none."""
        ...

    def decode(self, payload: memoryview, chunk: memoryview) -> None:
        """Fill `chunk`, which is as long as the encoded chunk was.

        Raises ValueError for an impossible payload.
        """
        ...


class RawChunks:
    """The payload is the chunk itself. It is sent from the chunk's memory and received into it."""

    code: ClassVar[Codec] = Codec.RAW
    fixed_length: ClassVar[bool] = True

    def limit_bytes(self, chunk_bytes: int) -> int:
        return chunk_bytes

    def encode(self, chunk: Buffer) -> Buffer:
        return chunk

    def decode(self, payload: memoryview, chunk: memoryview) -> None:
        """The payload is in its place already."""


class LosslessChunks:
    """Chunks of bfloat16."""

    code: ClassVar[Codec] = Codec.LOSSLESS
    fixed_length: ClassVar[bool] = False

    def limit_bytes(self, chunk_bytes: int) -> int:
        return compressed_limit_bytes(chunk_bytes)

    def encode(self, chunk: Buffer) -> Buffer:
        return compress(chunk)

    def decode(self, payload: memoryview, chunk: memoryview) -> None:
        decompress(payload, chunk)


@dataclass(frozen=True, slots=True)
class Int8Chunks:
    """Chunks of one layout. They come back as exactly as `to_int8` says."""

    layout: ChunkLayout

    code: ClassVar[Codec] = Codec.INT8
    fixed_length: ClassVar[bool] = True

    def limit_bytes(self, chunk_bytes: int) -> int:
        return self.layout.int8_bytes

    def encode(self, chunk: Buffer) -> Buffer:
        return to_int8(chunk, self.layout)

    def decode(self, payload: memoryview, chunk: memoryview) -> None:
        from_int8(payload, chunk, self.layout)


RAW_CHUNKS = RawChunks()


def chunk_codec(name: str, layout: Mapping[str, Any] | None, *, chunk_bytes: int) -> ChunkCodec:
    """The codec of a setting.

    name: of a `Codec`, in small letters.
    layout: the fields of the chunks' `ChunkLayout`; int8 needs it.
    chunk_bytes: of every chunk.
    Raises ValueError for an unknown name, for int8 without a layout of this length, and for lossless without
    the package zstandard.
    """
    if name == "raw":
        return RAW_CHUNKS
    if name == "lossless":
        if importlib.util.find_spec("zstandard") is None:
            raise ValueError("the lossless codec needs the package zstandard")
        return LosslessChunks()
    if name != "int8":
        raise ValueError(f"codec must be {', '.join(code.name.lower() for code in Codec)}, not {name!r}")
    if layout is None:
        raise ValueError("the int8 codec needs the layout of a chunk")
    try:
        arranged = ChunkLayout(**layout)
    except TypeError as error:
        raise ValueError(f"not the layout of a chunk: {error}") from None
    if arranged.raw_bytes != chunk_bytes:
        raise ValueError(
            f"a chunk of the layout {dict(layout)} has {arranged.raw_bytes} bytes, the engine's have "
            f"{chunk_bytes}"
        )
    return Int8Chunks(arranged)
