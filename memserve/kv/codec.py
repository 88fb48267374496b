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


_CODECS: Final = frozenset(Codec)


class Refusal(Enum):
    """Why a stored value is not what was asked for."""

    TRUNCATED_HEADER = "truncated_header"
    NOT_A_VALUE = "not_a_value"
    UNKNOWN_VERSION = "unknown_version"
    UNKNOWN_CODEC = "unknown_codec"
    OTHER_NAMESPACE = "other_namespace"
    OTHER_KEY = "other_key"
    WRONG_LENGTH = "wrong_length"
    BAD_CHECKSUM = "bad_checksum"


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


def verify(header: Buffer, payload: Buffer, *, namespace: bytes, key: bytes) -> Refusal | None:
    """Whether header and payload are the value that was stored under this namespace and key.

    header: the first HEADER_BYTES of the value, fewer when it is shorter. payload: all that follows, contiguous bytes.
    Returns None for a good value. Never raises on account of the bytes.
    """
    if memoryview(header).nbytes != HEADER_BYTES:
        return Refusal.TRUNCATED_HEADER
    fields, checksum = bytes(header[: _FIELDS.size]), header[_FIELDS.size :]
    magic, version, codec, key_bytes, payload_bytes, stored_namespace, stored_key = _FIELDS.unpack(fields)
    if magic != MAGIC:
        return Refusal.NOT_A_VALUE
    if version != VERSION:
        return Refusal.UNKNOWN_VERSION
    if codec not in _CODECS:
        return Refusal.UNKNOWN_CODEC
    if stored_namespace != namespace:
        return Refusal.OTHER_NAMESPACE
    if stored_key[:key_bytes] != key:
        return Refusal.OTHER_KEY
    if payload_bytes != memoryview(payload).nbytes:
        return Refusal.WRONG_LENGTH
    if _CHECKSUM.unpack(checksum)[0] != _checksum(fields, payload):
        return Refusal.BAD_CHECKSUM
    return None


def _checksum(fields: bytes, payload: Buffer) -> int:
    digest = xxhash.xxh3_64(fields)
    digest.update(payload)
    return digest.intdigest()
