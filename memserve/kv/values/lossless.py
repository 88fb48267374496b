"""KV in bfloat16, compressed without loss. Pure.

The payload is the low bytes of all numbers as they are, and then the high bytes of all numbers in one zstd
frame. The high byte is the sign and most of the exponent, which take few values. The low byte is mostly the
mantissa, which is noise.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from memserve.kv.values.envelope import Buffer

# The first level of zstd that codes literals. It is kept from looking for short repetitions. KV has none, and
# without the search compression is twice as fast.
_ZSTD_LEVEL: Final = 1
_ZSTD_HASH_LOG: Final = 8
_ZSTD_MIN_MATCH: Final = 7


def compress(chunk: Buffer) -> bytes:
    """Compress a chunk of bfloat16.

    chunk: contiguous bytes.
    Returns at most `compressed_limit_bytes` bytes.
    Raises ValueError for an odd length, ImportError without the package zstandard.
    """
    # Imported here, because only deployments that choose this codec need the package.
    from zstandard import ZstdCompressionParameters, ZstdCompressor

    length = memoryview(chunk).nbytes
    if length % 2:
        raise ValueError(f"{length} bytes are no bfloat16 numbers")
    numbers = np.frombuffer(chunk, "<u2")
    low, high = numbers.astype(np.uint8), (numbers >> np.uint16(8)).astype(np.uint8)
    parameters = ZstdCompressionParameters.from_level(
        _ZSTD_LEVEL, hash_log=_ZSTD_HASH_LOG, min_match=_ZSTD_MIN_MATCH
    )
    return b"".join((low.data, ZstdCompressor(compression_params=parameters).compress(high.data)))


def decompress(payload: Buffer, chunk: memoryview) -> None:
    """Fill `chunk` with what `compress` was given.

    payload: from `compress`, contiguous bytes.
    chunk: writable and contiguous, as long as the chunk was.
    Raises ValueError for a payload that cannot be a compressed chunk of this length, ImportError without the
    package zstandard.
    """
    from zstandard import ZstdDecompressor, ZstdError, frame_content_size

    count = chunk.nbytes // 2
    view = memoryview(payload).cast("B")
    try:
        # The frame is asked first: decompressing allocates the length that the frame claims.
        if chunk.nbytes % 2 or view.nbytes < count or frame_content_size(view[count:]) != count:
            raise ValueError(f"{view.nbytes} bytes are not {chunk.nbytes} bytes compressed")
        high = np.frombuffer(ZstdDecompressor().decompress(view[count:]), np.uint8)
    except ZstdError as error:
        raise ValueError(f"not a chunk compressed: {error}") from None
    numbers = np.frombuffer(chunk, "<u2")
    np.left_shift(high, np.uint16(8), out=numbers, dtype=np.uint16)
    numbers |= np.frombuffer(view, np.uint8, count)


def compressed_limit_bytes(chunk_bytes: int) -> int:
    """The longest payload of a chunk of this length. Source: ZSTD_COMPRESSBOUND in zstd.h."""
    count = chunk_bytes // 2
    margin = max(0, (128 << 10) - count) >> 11
    return count + count + (count >> 8) + margin
