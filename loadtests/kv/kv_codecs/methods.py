"""The ways to encode chunks, and how long and how slow each is."""

from __future__ import annotations

import importlib.util
import statistics
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memserve.kv.values.int8 import ChunkLayout, from_int8, to_int8
from memserve.kv.values.lossless import compress, decompress

Bytes = npt.NDArray[np.uint8]
Encode = Callable[[Bytes], bytes]


@dataclass(frozen=True, slots=True)
class Method:
    """encode: raw bytes to encoded ones. decode: encoded bytes into an array as long as the raw ones."""

    name: str
    encode: Callable[[Bytes], bytes | bytearray]
    decode: Callable[[bytes | bytearray, Bytes], None]
    exact: bool = True


@dataclass(frozen=True, slots=True)
class Timed:
    """A method on one sample: share of the raw length, seconds for the sample."""

    share: float
    encode_s: float
    decode_s: float
    same: bool


def lossless_methods(item_bytes: int) -> list[Method]:
    """Every compressor that is installed, on the bytes as they are and on planes of bytes; and memserve's
    own.
    """
    methods = []
    for name, encode, decode in compressors():
        methods.append(Method(name, encode, _into(decode)))
        methods.append(
            Method(f"{name}, planes", _of_planes(encode, item_bytes), _planes_into(decode, item_bytes))
        )
    if is_installed("zstandard") and item_bytes == 2:
        methods.append(
            Method(
                "Codec.LOSSLESS",
                lambda raw: compress(raw.data),
                lambda encoded, raw: decompress(encoded, raw.data),
            )
        )
    return methods


def compressors() -> list[tuple[str, Encode, Callable[[bytes], bytes]]]:
    """Name, compress and decompress of every compressor that is installed."""
    installed: list[tuple[str, Encode, Callable[[bytes], bytes]]] = [
        ("zlib 1", lambda raw: zlib.compress(raw.data, 1), zlib.decompress)
    ]
    if is_installed("isal"):
        from isal import isal_zlib  # type: ignore[import-not-found]

        installed.append(("isal 1", lambda raw: isal_zlib.compress(raw, 1), isal_zlib.decompress))
    if is_installed("lz4"):
        from lz4 import block  # type: ignore[import-not-found]

        installed.append(("lz4", lambda raw: block.compress(raw), block.decompress))
    if is_installed("zstandard"):
        for level in (1, 3):
            installed.append(_zstandard(level))
    return installed


def _zstandard(level: int) -> tuple[str, Encode, Callable[[bytes], bytes]]:
    from zstandard import ZstdCompressor, ZstdDecompressor

    compressor = ZstdCompressor(level=level)
    return f"zstd {level}", lambda raw: compressor.compress(raw.data), ZstdDecompressor().decompress


def _of_planes(encode: Encode, item_bytes: int) -> Encode:
    """Encode the first bytes of all items, then the second ones, and so on."""
    return lambda raw: encode(np.ascontiguousarray(raw.reshape(-1, item_bytes).T).reshape(-1))


def int8_method(layout: ChunkLayout) -> Method:
    """The chunks of a sample one after the other."""

    def encode(raw: Bytes) -> bytes:
        return b"".join(to_int8(chunk.data, layout) for chunk in raw.reshape(-1, layout.raw_bytes))

    def decode(encoded: bytes | bytearray, raw: Bytes) -> None:
        view = memoryview(encoded)
        for number, chunk in enumerate(raw.reshape(-1, layout.raw_bytes)):
            from_int8(view[number * layout.int8_bytes : (number + 1) * layout.int8_bytes], chunk.data, layout)

    return Method("Codec.INT8", encode, decode, exact=False)


def time_methods(methods: Sequence[Method], samples: Sequence[Bytes], rounds: int) -> dict[str, Timed]:
    """Medians over rounds and samples, the methods in turn."""
    seen: dict[str, list[Timed]] = {method.name: [] for method in methods}
    for _ in range(rounds):
        for raw in samples:
            loaded = np.empty_like(raw)
            for method in methods:
                loaded.fill(0)  # resident, as the host tier's memory is
                started_s = time.thread_time()
                encoded = method.encode(raw)
                encoded_s = time.thread_time()
                method.decode(encoded, loaded)
                decoded_s = time.thread_time()
                same = bool((loaded == raw).all())
                seen[method.name].append(
                    Timed(len(encoded) / raw.size, encoded_s - started_s, decoded_s - encoded_s, same)
                )
    return {
        name: Timed(
            statistics.mean(timed.share for timed in all_),
            statistics.median(timed.encode_s for timed in all_),
            statistics.median(timed.decode_s for timed in all_),
            all(timed.same for timed in all_),
        )
        for name, all_ in seen.items()
    }


def is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _into(decode: Callable[[bytes], bytes]) -> Callable[[bytes | bytearray, Bytes], None]:
    def decode_into(encoded: bytes | bytearray, raw: Bytes) -> None:
        raw[:] = np.frombuffer(decode(bytes(encoded)), np.uint8)

    return decode_into


def _planes_into(
    decode: Callable[[bytes], bytes], item_bytes: int
) -> Callable[[bytes | bytearray, Bytes], None]:
    def decode_into(encoded: bytes | bytearray, raw: Bytes) -> None:
        planes = np.frombuffer(decode(bytes(encoded)), np.uint8).reshape(item_bytes, -1)
        if item_bytes == 2:
            numbers = raw.view(np.uint16)
            np.left_shift(planes[1], np.uint16(8), out=numbers, dtype=np.uint16)
            numbers |= planes[0]
        else:
            raw.reshape(-1, item_bytes)[...] = planes.T

    return decode_into
