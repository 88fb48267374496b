"""The codecs of chunks: what they decode, and what comes back."""

from __future__ import annotations

import struct

from loadtests.kv.kv_fuzz.faults import WrongValue
from memserve.kv.values.codecs import ChunkCodec, Int8Chunks, LosslessChunks
from memserve.kv.values.int8 import ChunkLayout

# Of an input to the chunk codecs: which, and half the length of the chunk that bytes are to be decoded to.
CHUNK_CONTROLS = struct.Struct(">BH")
LAYOUT = ChunkLayout(
    dtype="bfloat16", tensors=1, blocks=1, block_tokens=16, kv_heads=1, head_size=16, packing="amx"
)
CHUNK_CODECS: tuple[ChunkCodec, ...] = (LosslessChunks(), Int8Chunks(LAYOUT))
GUARD = b"guard"


def check_chunk(case: bytes) -> tuple[int, int]:
    """Decode bytes, and encode them and decode that. case: CHUNK_CONTROLS, then the bytes.

    Returns what was decoded, and what was refused. Raises WrongValue or what crashed.
    """
    which, half_length = CHUNK_CONTROLS.unpack(case[: CHUNK_CONTROLS.size].ljust(CHUNK_CONTROLS.size, b"\0"))
    content = case[CHUNK_CONTROLS.size :]
    codec = CHUNK_CODECS[which % len(CHUNK_CODECS)]
    decoded = decode_guarded(codec, content, 2 * half_length) is not None
    chunk = content[: len(content) // 2 * 2]
    if isinstance(codec, Int8Chunks):
        chunk = content[: LAYOUT.raw_bytes].ljust(LAYOUT.raw_bytes, b"\0")
        decoded = (
            decode_guarded(
                codec, content[: LAYOUT.int8_bytes].ljust(LAYOUT.int8_bytes, b"\0"), LAYOUT.raw_bytes
            )
            is not None
        )
    try:
        payload = bytes(codec.encode(chunk))
    except ValueError:
        return int(decoded), 2 - decoded
    if len(payload) > codec.limit_bytes(len(chunk)):
        raise WrongValue(f"a chunk of {len(chunk)} bytes became {len(payload)}")
    came = decode_guarded(codec, payload, len(chunk))
    if came is None or (came != chunk and not isinstance(codec, Int8Chunks)):
        raise WrongValue(f"a chunk of {len(chunk)} bytes did not come back")
    return 1 + decoded, 1 - decoded


def decode_guarded(codec: ChunkCodec, payload: bytes, chunk_bytes: int) -> bytes | None:
    """None for what the codec refuses. Raises WrongValue when it writes outside of the chunk."""
    memory = bytearray(GUARD + bytes(chunk_bytes) + GUARD)
    try:
        codec.decode(memoryview(payload), memoryview(memory)[len(GUARD) : -len(GUARD)])
        return bytes(memory[len(GUARD) : -len(GUARD)])
    except ValueError:
        return None
    finally:
        if not (memory.startswith(GUARD) and memory.endswith(GUARD)):
            raise WrongValue(f"{len(payload)} bytes were decoded outside of a chunk of {chunk_bytes}")
