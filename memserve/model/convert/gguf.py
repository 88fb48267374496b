"""What a GGUF file says of itself: its values, its tensors, and whether the file has what it announces.

The header is read here, with a bound on everything, before another reader believes it. Nothing is
dequantized. Source: the specification of GGUF (ggml/docs/gguf.md), versions 2 and 3.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from memserve.errors import StartupError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
TENSORS_MAX, VALUES_MAX, DIMENSIONS_MAX = 100_000, 10_000, 4
NAME_MAX_BYTES, TEXT_MAX_BYTES = 256, 1 << 20
# A vocabulary of 256,000 tokens has as many texts, and up to twice as many merges.
ARRAY_MAX = 4_000_000
ALIGNMENT, ALIGNMENT_MAX = "general.alignment", 1 << 16
# Elements and bytes of a block by ggml's number of a type: those that transformers turns into numbers.
BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 16: (256, 66), 17: (256, 74),
    18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136), 29: (256, 56),
    30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36),
}  # fmt: skip
# Formats of struct by GGUF's number of a value's type. 8 is a text, 9 an array.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
_BLOCK = re.compile(r"(?:^|\.)blk\.(\d+)\.")
# Tensors with factors for the frequencies of positions: of Llama 3.1, and of Phi 3 with a long context.
_SCALED_POSITIONS = ("rope_freqs.", "rope_factors_")

Value = int | float | bool | str


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor as the header announces it."""

    name: str
    shape: tuple[int, ...]
    """The fastest dimension first, as GGUF has it."""
    begin: int
    """In the file."""
    size_bytes: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """The header of a file that has all the tensors that it announces."""

    path: Path
    values: dict[str, Value]
    lengths: dict[str, int]
    """Of arrays, by name."""
    tensors: tuple[GgufTensor, ...]

    @property
    def elements(self) -> int:
        """Numbers in all tensors."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    @property
    def architecture(self) -> str:
        """As GGUF calls it, such as `llama`."""
        return str(self.values["general.architecture"])


def read_gguf(path: Path) -> GgufFile:
    """Read a file's header, and hold it against the file.

    Raises StartupError that names the file, the field and the rule.
    """
    try:
        if not path.is_file():
            raise StartupError(f"{path} is no file" if path.exists() else f"{path} does not exist")
        if path.stat().st_size < 24:
            raise StartupError(f"{path} is no GGUF file: it has {path.stat().st_size} bytes")
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _parsed(path, _Cursor(path, content))
    except OSError as error:
        raise StartupError(f"{path}: {error.strerror or error}") from None


class _Cursor:
    """Reads one field after the other, and never past the end."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self.path = path
        self.at = 0
        self.size_bytes = len(content)
        self._content = content

    def refusal(self, what: str) -> StartupError:
        return StartupError(f"{self.path} is no GGUF file that can be read: {what}")

    def number(self, kind: str, what: str) -> int | float | bool:
        fields = struct.Struct(f"<{kind}")
        self._has(fields.size, what)
        (value,) = fields.unpack_from(self._content, self.at)
        self.at += fields.size
        return value  # type: ignore[no-any-return]

    def whole(self, kind: str, what: str, at_most: int) -> int:
        """A count. Raises StartupError for one over the bound."""
        value = int(self.number(kind, what))
        if value > at_most:
            raise self.refusal(f"{what} is {value}, and at most {at_most} are read")
        return value

    def text(self, what: str, at_most: int) -> str:
        length = self.whole("Q", f"the length of {what}", at_most)
        self._has(length, what)
        content = self._content[self.at : self.at + length]
        self.at += length
        try:
            return content.decode()
        except UnicodeDecodeError:
            raise self.refusal(f"{what} is not UTF-8") from None

    def skip(self, count: int, what: str) -> None:
        self._has(count, what)
        self.at += count

    def _has(self, count: int, what: str) -> None:
        if count > self.size_bytes - self.at:
            raise self.refusal(f"it is cut off in {what}: byte {self.at + count} of {self.size_bytes}")


def _parsed(path: Path, cursor: _Cursor) -> GgufFile:
    if cursor.number("I", "the magic number") != int.from_bytes(MAGIC, "little"):
        raise cursor.refusal("it does not begin with GGUF")
    version = cursor.number("I", "the version")
    if version not in VERSIONS:
        raise cursor.refusal(f"its version is {version}; versions 2 and 3 of little endian are read")
    tensors = cursor.whole("Q", "the number of tensors", TENSORS_MAX)
    values: dict[str, Value] = {}
    lengths: dict[str, int] = {}
    for _ in range(cursor.whole("Q", "the number of values", VALUES_MAX)):
        name = cursor.text("a value's name", 1 << 16)
        if name in values or name in lengths:
            raise cursor.refusal(f"{name[:100]!r} stands twice")
        _read_value(cursor, name, values, lengths)
    announced = [_announced(cursor) for _ in range(tensors)]
    alignment = values.get(ALIGNMENT, 32)
    if not isinstance(alignment, int) or not 8 <= alignment <= ALIGNMENT_MAX or alignment % 8:
        raise cursor.refusal(f"{ALIGNMENT} is {alignment!r}; it is a multiple of 8, at most {ALIGNMENT_MAX}")
    placed = _placed(cursor, announced, int(alignment))
    _check_values(cursor, values, placed)
    return GgufFile(path, values, lengths, placed)


def _read_value(cursor: _Cursor, name: str, values: dict[str, Value], lengths: dict[str, int]) -> None:
    """The value goes to `values`, the length of an array to `lengths`."""
    what = repr(name[:100])
    kind = cursor.whole("I", f"the type of {what}", 1 << 30)
    if kind in _NUMBERS:
        values[name] = cursor.number(_NUMBERS[kind], what)
    elif kind == _TEXT:
        values[name] = cursor.text(what, TEXT_MAX_BYTES)
    elif kind == _ARRAY:
        element = cursor.whole("I", f"the type of {what}", 1 << 30)
        lengths[name] = cursor.whole("Q", f"the length of {what}", ARRAY_MAX)
        if element in _NUMBERS:
            cursor.skip(lengths[name] * struct.calcsize(f"<{_NUMBERS[element]}"), what)
        elif element == _TEXT:
            for _ in range(lengths[name]):
                cursor.skip(cursor.whole("Q", f"the length of a text of {what}", TEXT_MAX_BYTES), what)
        else:
            raise cursor.refusal(f"{what} is an array of type {element}")
    else:
        raise cursor.refusal(f"{what} has the type {kind}")


def _announced(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, type and offset of the next tensor."""
    name = cursor.text("a tensor's name", NAME_MAX_BYTES)
    dimensions = cursor.whole("I", f"the number of dimensions of {name!r}", DIMENSIONS_MAX)
    shape = tuple(cursor.whole("Q", f"a dimension of {name!r}", 1 << 40) for _ in range(dimensions))
    kind = cursor.whole("I", f"the type of {name!r}", 1 << 30)
    return name, shape, kind, cursor.whole("Q", f"the place of {name!r}", 1 << 60)


def _placed(
    cursor: _Cursor, announced: list[tuple[str, tuple[int, ...], int, int]], alignment: int
) -> tuple[GgufTensor, ...]:
    """The tensors where they stand. Each is whole, has a type that is read, and shares no byte."""
    start = -(-cursor.at // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for name, shape, kind, offset in announced:
        if kind not in BLOCKS:
            raise cursor.refusal(
                f"tensor {name!r} has the type {kind} of ggml, which transformers does not read"
            )
        elements, block_bytes = BLOCKS[kind]
        if not shape or min(shape) < 1 or shape[0] % elements:
            raise cursor.refusal(f"tensor {name!r} has the shape {list(shape)}, in blocks of {elements}")
        if offset % alignment:
            raise cursor.refusal(f"tensor {name!r} is not aligned to {alignment} bytes")
        if name in tensors:
            raise cursor.refusal(f"tensor {name!r} stands twice")
        size = math.prod(shape) // elements * block_bytes
        if start + offset + size > cursor.size_bytes:
            raise cursor.refusal(
                f"it is cut off: tensor {name!r} ends at byte {start + offset + size}, and the file has "
                f"{cursor.size_bytes}"
            )
        tensors[name] = GgufTensor(name, shape, start + offset, size)
    end = 0
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.begin):
        if tensor.begin < end:
            raise cursor.refusal(f"tensor {tensor.name!r} shares bytes with another")
        end = tensor.begin + tensor.size_bytes
    return tuple(tensors.values())


def _check_values(cursor: _Cursor, values: dict[str, Value], tensors: tuple[GgufTensor, ...]) -> None:
    """What the conversion needs to know is there, and is possible."""
    architecture = values.get("general.architecture")
    if not isinstance(architecture, str) or not architecture.isascii() or not 0 < len(architecture) <= 64:
        raise cursor.refusal("'general.architecture' must be a short text")
    if (kind := values.get("general.type", "model")) != "model":
        raise cursor.refusal(f"'general.type' is {kind!r}; a whole model is wanted")
    if (pieces := values.get("split.count", 1)) not in (0, 1):
        raise cursor.refusal(f"it is one of {pieces} pieces; merge them first (llama-gguf-split --merge)")
    if not tensors:
        raise cursor.refusal("it has no tensors")
    name = f"{architecture}.block_count"
    blocks = values.get(name)
    named = {found[1] for tensor in tensors if (found := _BLOCK.search(tensor.name))}
    if not isinstance(blocks, int) or isinstance(blocks, bool) or not 1 <= blocks == len(named):
        raise cursor.refusal(f"{name!r} is {blocks!r}, and it has the tensors of {len(named)} blocks")
    scaling = values.get(f"{architecture}.rope.scaling.type", "none")
    if scaling != "none" or any(tensor.name.startswith(_SCALED_POSITIONS) for tensor in tensors):
        raise StartupError(
            f"{cursor.path} scales its positions (rope), and transformers' reader of GGUF leaves that out; "
            "take the model in safetensors"
        )
