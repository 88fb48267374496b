"""The stored value: a fixed header that says what the value is, then the payload. No I/O.

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

import xxhash

Buffer = bytes | bytearray | memoryview

MAGIC: Final = b"MSKV"
VERSION: Final = 1
NAMESPACE_BYTES: Final = 32
MAX_KEY_BYTES: Final = 64
_FIELDS: Final = struct.Struct(f">4sBBHQ{NAMESPACE_BYTES}s{MAX_KEY_BYTES}s")
_CHECKSUM: Final = struct.Struct(">Q")
HEADER_BYTES: Final = _FIELDS.size + _CHECKSUM.size


class Codec(IntEnum):
    """How the payload is encoded."""

    RAW = 0
    """The chunk's bytes as the engine has them."""
    LOSSLESS = 1
    """As `memserve.kv.values.lossless`. For bfloat16 only. Lengths differ from chunk to chunk."""
    INT8 = 2
    """As `memserve.kv.values.int8`. All payloads have one length. Not exact."""


_CODECS: Final = frozenset(Codec)


class Refusal(Enum):
    """Why a stored value is refused."""

    TRUNCATED_HEADER = "truncated_header"
    NOT_A_VALUE = "not_a_value"
    UNKNOWN_VERSION = "unknown_version"
    UNKNOWN_CODEC = "unknown_codec"
    OTHER_CODEC = "other_codec"
    OTHER_NAMESPACE = "other_namespace"
    OTHER_KEY = "other_key"
    WRONG_LENGTH = "wrong_length"
    BAD_CHECKSUM = "bad_checksum"
    UNDECODABLE = "undecodable"
    """The value is as it was stored, but it is no encoded chunk of this length."""


def encode_header(payload: Buffer, *, namespace: bytes, key: bytes, codec: Codec = Codec.RAW) -> bytes:
    """The header that stands before `payload`.

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
    """Checks that an arriving value was stored under this namespace and key, with this codec.

    It serves one value, once. The checksum can be taken while the value arrives. Bytes that were counted are
    not looked at again.
    """

    __slots__ = ("_codec", "_digest", "_expected", "_key", "_namespace", "_payload", "_seen_bytes")

    def __init__(
        self, payload: memoryview, *, namespace: bytes, key: bytes, codec: Codec = Codec.RAW
    ) -> None:
        """payload: where the bytes after the header arrive; contiguous, and still encoded."""
        self._payload, self._namespace, self._key, self._codec = payload, namespace, key, codec
        self._expected = _FIELDS.pack(MAGIC, VERSION, codec, len(key), payload.nbytes, namespace, key)
        self._digest = xxhash.xxh3_64(self._expected)
        self._seen_bytes = 0

    def came(self, payload_bytes: int) -> None:
        """This many bytes of the payload have arrived, and will not change."""
        if payload_bytes > self._seen_bytes:
            self._digest.update(self._payload[self._seen_bytes : payload_bytes])
            self._seen_bytes = payload_bytes

    def refusal(self, header: Buffer) -> Refusal | None:
        """The verdict, once all of the payload has arrived.

        None: the value is good. Bytes never make it raise.

        header: the first HEADER_BYTES of the value; fewer when the value is shorter.
        """
        self.came(self._payload.nbytes)
        if header == self._expected + _CHECKSUM.pack(self._digest.intdigest()):
            return None
        return _fault(header, self._payload, namespace=self._namespace, key=self._key, codec=self._codec)


def _fault(header: Buffer, payload: Buffer, *, namespace: bytes, key: bytes, codec: Codec) -> Refusal:
    """The first fault of a header that is not the payload's."""
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


def _checksum(fields: bytes, payload: Buffer) -> int:
    digest = xxhash.xxh3_64(fields)
    digest.update(payload)
    return digest.intdigest()
