"""What the checks of every kind of module share.

They share the base model, the checked module, and readers of untrusted JSON and safetensors files.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from memserve.domain import ModuleKind, WeightFigures
from memserve.errors import InvalidModule
from memserve.model.files import read_safetensors_header, safetensors_header_bytes

JSON_MAX_BYTES = 1 << 20
# Limit for a safetensors file. While one of the two readers parses a header, no other thread of the gateway
# runs.
HEADER_MAX_BYTES = 1 << 20
NAME_SHOWN_CHARS = 200
SLICE_ENTRIES = 1 << 22
# bfloat16 is the upper half of a float32. numpy has no type for it.
DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class KvShape:
    """The KV of the model that a module is checked against."""

    layers: int
    kv_heads: int
    head_size: int
    context_tokens: int
    """The longest prompt and answer together."""
    block_tokens: int
    """Tokens in a block of the workers."""
    rope: Mapping[str, Any]
    """As `ModelFiles.rope`."""
    base_digest: str
    refusal: str = ""
    """Why no KV can stand before a prompt of this model. Empty: it can."""


@dataclass(frozen=True, slots=True)
class EmbeddingShape:
    """The embeddings of the model that a module is checked against."""

    width: int
    """Of the hidden states."""
    dtype: str
    """In which the model is served, as torch names it."""
    context_tokens: int
    """The longest prompt and answer together."""
    base_digest: str
    refusal: str = ""
    """Why this model takes no embeddings in the place of tokens. Empty: it takes them."""


@dataclass(frozen=True, slots=True)
class BaseModel:
    """The model that a module is checked against."""

    shapes: Mapping[str, tuple[int, ...]]
    """The model's weights: name to shape. A linear layer has the shape [out, in]."""
    vocab_size: int
    max_rank: int
    """The workers' limit for the rank of a LoRA."""
    kv: KvShape | None = None
    """None: not known, so that no cartridge can be checked."""
    embedding: EmbeddingShape | None = None
    """None: not known, so that no soft prompt can be checked."""


@dataclass(frozen=True, slots=True)
class CheckedModule:
    """A module that fits the base model."""

    digest: str
    """sha256 over the canonical content, hex."""
    kind: ModuleKind
    rank: int
    """The rank of a LoRA. 0 for other kinds."""
    target_modules: tuple[str, ...]
    """The names of the layers that a LoRA adapts. Empty for other kinds."""
    figures: WeightFigures
    rewritten: dict[str, bytes]
    """File name to the canonical bytes that are kept in the place of the uploaded bytes."""
    warning: str = ""
    """Something odd that is no fault. Empty: nothing."""
    prefix_tokens: int = 0
    """The positions that a cartridge or a soft prompt takes. 0 for other kinds."""


def read_json_object(file: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object. Raises InvalidModule, whose field is the file's name."""
    if not file.is_file():
        raise InvalidModule(file.name, "is missing")
    if file.stat().st_size > JSON_MAX_BYTES:
        raise InvalidModule(file.name, f"has at most {JSON_MAX_BYTES} bytes")
    try:
        entries = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        raise InvalidModule(file.name, "is not JSON") from None
    if not isinstance(entries, dict):
        raise InvalidModule(file.name, "must hold an object")
    return entries


def canonical_json(entries: Mapping[str, Any]) -> bytes:
    return json.dumps(entries, sort_keys=True).encode()


class TensorFile:
    """An uploaded safetensors file, mapped into memory and read a slice at a time."""

    def __init__(self, file: Path) -> None:
        """Raises InvalidModule when the file is missing, is no safetensors file, or holds no tensors.

        A header of more than HEADER_MAX_BYTES raises InvalidModule too.
        """
        if not file.is_file():
            raise InvalidModule(file.name, "is missing")
        try:
            size = safetensors_header_bytes(file)
            if size > HEADER_MAX_BYTES:
                raise InvalidModule(
                    file.name, f"its header has {size} bytes, at most {HEADER_MAX_BYTES} are taken"
                )
            # vLLM's reader comes first. A file that vLLM cannot read must not get the digest of a sound file
            # with the same tensors.
            with safe_open(file, framework="numpy"):
                header = read_safetensors_header(file)
            self._entries = {
                name: (e["dtype"], tuple(e["shape"]), *e["data_offsets"]) for name, e in header.items()
            }
        except (SafetensorError, ValueError, TypeError, KeyError, RecursionError, OSError):
            raise InvalidModule(file.name, "is not a safetensors file, or is cut short") from None
        if not self._entries:
            raise InvalidModule(file.name, "holds no tensors")
        self._content = np.memmap(file, dtype=np.uint8, mode="r")
        self._begin = 8 + size
        self._hash = hashlib.sha256()

    @property
    def names(self) -> list[str]:
        """The names of the tensors, sorted.

        The tensors are checked in this order, so that the digest does not depend on the order in the file.
        """
        return sorted(self._entries)

    def check(self, name: str, wanted: tuple[int, ...]) -> bool:
        """Check the dtype, shape, place and values of one tensor, and take the tensor into the digest.

        The caller checks the tensors in the order of `names`.

        wanted: the shape that the tensor must have.
        Returns whether any value is other than 0. Raises InvalidModule, whose field is the tensor's name.
        """
        dtype, shape, start, end = self._entries[name]
        if dtype not in DTYPES:
            raise InvalidModule(name, f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
        if shape != wanted:
            raise InvalidModule(name, f"shape must be {list(wanted)}, not {list(shape)}")
        size = math.prod(shape) * DTYPES[dtype].itemsize
        whole = isinstance(start, int) and isinstance(end, int)
        if not (whole and start >= 0 and end - start == size and self._begin + end <= len(self._content)):
            raise InvalidModule(name, "its data lies outside the file, or is cut short")
        nonzero = False
        self._hash.update(f"{name}\0{dtype}\0{shape}\0".encode())
        for values in self._slices(name):
            finite = (values & 0x7F80) != 0x7F80 if dtype == "BF16" else np.isfinite(values)
            if not finite.all():
                raise InvalidModule(name, "holds NaN or infinite values")
            nonzero = nonzero or bool((values & 0x7FFF if dtype == "BF16" else values).any())
            self._hash.update(values.tobytes())
        return nonzero

    def content_digest(self) -> bytes:
        """sha256 over the name, dtype, shape and bytes of every checked tensor. 32 bytes."""
        return self._hash.digest()

    def float32(self, name: str) -> Floats:
        """A copy of the tensor's values. Only for a tensor that `check` has accepted."""
        dtype, shape, _, _ = self._entries[name]
        parts = [
            _widened(values) if dtype == "BF16" else values.astype(np.float32)
            for values in self._slices(name)
        ]
        return np.concatenate(parts).reshape(shape)

    def _slices(self, name: str) -> Iterator[npt.NDArray[Any]]:
        dtype, _, start, end = self._entries[name]
        kind = DTYPES[dtype]
        step = SLICE_ENTRIES * kind.itemsize
        for first in range(start, end, step):
            yield self._content[self._begin + first : self._begin + min(first + step, end)].view(kind)


def _widened(values: npt.NDArray[np.uint16]) -> Floats:
    return (values.astype(np.uint32) << 16).view(np.float32)
