"""The stored value: a fixed header that says what the value is, then the payload, and how the payload is
encoded. No I/O.

    0   4s   magic "MSKV"
    4   B    version
    5   B    codec
    6   H    length of the key, bytes
    8   Q    length of the payload, bytes
    16  32s  namespace digest
    48  64s  chunk key, zero-padded
    112 Q    xxh3_64 over bytes 0-111 and the payload

Big-endian. The payload starts at byte 120 and ends the value.
"""

from __future__ import annotations

import struct
from enum import Enum, IntEnum
from typing import Final

import numpy as np
import xxhash

Buffer = bytes | bytearray | memoryview

MAGIC: Final = b"MSKV"
VERSION: Final = 1
NAMESPACE_BYTES: Final = 32
MAX_KEY_BYTES: Final = 64
_FIELDS: Final = struct.Struct(f">4sBBHQ{NAMESPACE_BYTES}s{MAX_KEY_BYTES}s")
_CHECKSUM: Final = struct.Struct(">Q")
HEADER_BYTES: Final = _FIELDS.size + _CHECKSUM.size


# The first literal-coding level of zstd, kept from looking for short repetitions: KV has none, and without
# them it is twice as fast.
_ZSTD_LEVEL: Final = 1
_ZSTD_HASH_LOG: Final = 8
_ZSTD_MIN_MATCH: Final = 7


class Codec(IntEnum):
    """How the payload is encoded.

    RAW: the chunk's bytes as the engine has them. LOSSLESS: `compress`, of bfloat16 only; lengths differ from
    chunk to chunk. INT8: `memserve.kv.values.int8`; all of one length, and not exact.
    """

    RAW = 0
    LOSSLESS = 1
    INT8 = 2


_CODECS: Final = frozenset(Codec)


class Refusal(Enum):
    """Why a stored value is not what was asked for."""

    TRUNCATED_HEADER = "truncated_header"
    NOT_A_VALUE = "not_a_value"
    UNKNOWN_VERSION = "unknown_version"
    UNKNOWN_CODEC = "unknown_codec"
    OTHER_CODEC = "other_codec"
    OTHER_NAMESPACE = "other_namespace"
    OTHER_KEY = "other_key"
    WRONG_LENGTH = "wrong_length"
    BAD_CHECKSUM = "bad_checksum"
    # As it was stored, but no chunk of this length encoded.
    UNDECODABLE = "undecodable"


def encode_header(payload: Buffer, *, namespace: bytes, key: bytes, codec: Codec = Codec.RAW) -> bytes:
    """The header to be stored in front of `payload`.

    payload: contiguous bytes. namespace: 32 raw bytes of the digest. key: 1 to 64 bytes.
    Returns HEADER_BYTES bytes.
    Raises ValueError for a namespace or a key of another length.
    """
    if len(namespace) != NAMESPACE_BYTES or not 0 < len(key) <= MAX_KEY_BYTES:
        raise ValueError(f"namespace of {len(namespace)} bytes, key of {len(key)} bytes")
    length = memoryview(payload).nbytes
    fields = _FIELDS.pack(MAGIC, VERSION, codec, len(key), length, namespace, key)
    return fields + _CHECKSUM.pack(_checksum(fields, payload))


class Verification:
    """Whether what is coming is the value that was stored under this namespace and key, encoded by this
    codec.

    For one value, once: the checksum may be taken while it comes, and bytes that were seen are not looked at
    again.
    """

    __slots__ = ("_codec", "_digest", "_expected", "_key", "_namespace", "_payload", "_seen_bytes")

    def __init__(
        self, payload: memoryview, *, namespace: bytes, key: bytes, codec: Codec = Codec.RAW
    ) -> None:
        """payload: where all that follows the header comes, contiguous bytes, still encoded."""
        self._payload, self._namespace, self._key, self._codec = payload, namespace, key, codec
        self._expected = _FIELDS.pack(MAGIC, VERSION, codec, len(key), payload.nbytes, namespace, key)
        self._digest = xxhash.xxh3_64(self._expected)
        self._seen_bytes = 0

    def came(self, payload_bytes: int) -> None:
        """So many bytes of the payload are there, and will not change."""
        if payload_bytes > self._seen_bytes:
            self._digest.update(self._payload[self._seen_bytes : payload_bytes])
            self._seen_bytes = payload_bytes

    def refusal(self, header: Buffer) -> Refusal | None:
        """All of the payload is there. header: the first HEADER_BYTES of the value, fewer when it is shorter.

        Returns None for a good value. Never raises on account of the bytes.
        """
        self.came(self._payload.nbytes)
        if header == self._expected + _CHECKSUM.pack(self._digest.intdigest()):
            return None
        return _fault(header, self._payload, namespace=self._namespace, key=self._key, codec=self._codec)


def _fault(header: Buffer, payload: Buffer, *, namespace: bytes, key: bytes, codec: Codec) -> Refusal:
    """What is wrong first with a header that is not the one that belongs to the payload."""
    if memoryview(header).nbytes != HEADER_BYTES:
        return Refusal.TRUNCATED_HEADER
    magic, version, stored_codec, key_bytes, payload_bytes, stored_namespace, stored_key = _FIELDS.unpack(
        header[: _FIELDS.size]
    )
    if magic != MAGIC:
        return Refusal.NOT_A_VALUE
    if version != VERSION:
        return Refusal.UNKNOWN_VERSION
    if stored_codec not in _CODECS:
        return Refusal.UNKNOWN_CODEC
    if stored_codec != codec:
        return Refusal.OTHER_CODEC
    if stored_namespace != namespace:
        return Refusal.OTHER_NAMESPACE
    if stored_key[:key_bytes] != key:
        return Refusal.OTHER_KEY
    if payload_bytes != memoryview(payload).nbytes:
        return Refusal.WRONG_LENGTH
    return Refusal.BAD_CHECKSUM


def compress(chunk: Buffer) -> bytes:
    """A chunk of bfloat16 without loss: the low bytes of all numbers as they are, then their high bytes in
    one zstd frame.

    The high byte, sign and most of the exponent, takes few values; the low one, the mantissa, is noise.
    chunk: contiguous bytes.
    Returns at most `compressed_limit_bytes` bytes.
    Raises ValueError for an odd length, ImportError without the package zstandard.
    """
    # Not at the top: only deployments that choose this codec need the package.
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
    """payload: what `compress` made, contiguous bytes. chunk: writable, contiguous, as long as the chunk was;
    it is filled.

    Raises ValueError for what cannot be a chunk of this length compressed, ImportError without the package
    zstandard.
    """
    from zstandard import ZstdDecompressor, ZstdError, frame_content_size

    count = chunk.nbytes // 2
    view = memoryview(payload).cast("B")
    try:
        # Asked first: the length that a frame claims is allocated.
        if chunk.nbytes % 2 or view.nbytes < count or frame_content_size(view[count:]) != count:
            raise ValueError(f"{view.nbytes} bytes are not {chunk.nbytes} bytes compressed")
        high = np.frombuffer(ZstdDecompressor().decompress(view[count:]), np.uint8)
    except ZstdError as error:
        raise ValueError(f"not a chunk compressed: {error}") from None
    numbers = np.frombuffer(chunk, "<u2")
    np.left_shift(high, np.uint16(8), out=numbers, dtype=np.uint16)
    numbers |= np.frombuffer(view, np.uint8, count)


def compressed_limit_bytes(chunk_bytes: int) -> int:
    """The longest that `compress` makes of a chunk of this length. Source: ZSTD_COMPRESSBOUND in zstd.h."""
    count = chunk_bytes // 2
    margin = max(0, (128 << 10) - count) >> 11
    return count + count + (count >> 8) + margin


def _checksum(fields: bytes, payload: Buffer) -> int:
    digest = xxhash.xxh3_64(fields)
    digest.update(payload)
    return digest.intdigest()
