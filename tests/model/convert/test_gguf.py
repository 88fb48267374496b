"""A GGUF header is believed only as far as the file bears it out."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memserve.errors import StartupError
from memserve.model.convert.gguf import read_gguf
from tests.model.convert.tiny_gguf import CONTEXT, LAYERS, TinyGguf, tokens


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TinyGguf(kind="Q8_0").write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_a_header_is_read_as_it_was_written(file: Path) -> None:
    header = read_gguf(file)
    assert header.architecture == "llama"
    assert header.values["llama.context_length"] == CONTEXT
    assert header.values["llama.block_count"] == LAYERS
    assert header.lengths["tokenizer.ggml.tokens"] == len(tokens())
    assert header.elements == sum(tensor.size for tensor in TinyGguf().tensors().values())
    assert max(tensor.begin + tensor.size_bytes for tensor in header.tensors) <= file.stat().st_size


@pytest.mark.parametrize(
    ("tiny", "says"),
    [
        (TinyGguf(values={"block_count": 3}), "'llama.block_count' is 3, and it has the tensors of 2 blocks"),
        (TinyGguf(values={"block_count": 1 << 31}), "'llama.block_count' is 2147483648"),
        (TinyGguf(values={"split.count": 4}), "one of 4 pieces; merge them first"),
        (TinyGguf(texts={"general.type": "adapter"}), "'general.type' is 'adapter'"),
        (TinyGguf(texts={"llama.rope.scaling.type": "yarn"}), "scales its positions .*in safetensors"),
        (TinyGguf(beside=("rope_freqs.weight",)), "scales its positions .*in safetensors"),
    ],
)
def test_a_header_that_lies_is_refused_with_the_field(tmp_path: Path, tiny: TinyGguf, says: str) -> None:
    with pytest.raises(StartupError, match=says):
        read_gguf(tiny.write(tmp_path / "lies.gguf"))


def with_number(file: Path, target: Path, at: int, kind: str, number: int) -> Path:
    content = bytearray(file.read_bytes())
    struct.pack_into(f"<{kind}", content, at, number)
    target.write_bytes(content)
    return target


@pytest.mark.parametrize(
    ("at", "kind", "number", "says"),
    [
        (0, "I", 0, "does not begin with GGUF"),
        (4, "I", 1, "its version is 1"),
        (4, "I", 3 << 24, "versions 2 and 3 of little endian"),
        (8, "Q", 1 << 60, "the number of tensors is 1152921504606846976, and at most"),
        (8, "Q", 90_000, "no GGUF file that can be read"),
        (16, "Q", 1 << 40, "the number of values is"),
        (24, "Q", 1 << 62, "the length of a value's name is"),
    ],
)
def test_a_count_over_its_bound_is_named(
    file: Path, tmp_path: Path, at: int, kind: str, number: int, says: str
) -> None:
    with pytest.raises(StartupError, match=says):
        read_gguf(with_number(file, tmp_path / "lies.gguf", at, kind, number))


def place_of(file: Path, name: str) -> int:
    """Where the header has what follows a tensor's name: its number of dimensions."""
    content = file.read_bytes()
    return content.index(struct.pack("<Q", len(name)) + name.encode()) + 8 + len(name)


@pytest.mark.parametrize(
    ("offset", "kind", "number", "says"),
    [
        (0, "I", 1_000_000, "the number of dimensions of 'blk.0.attn_v.weight' is 1000000"),
        (4, "Q", 0, r"has the shape \[0, 32\]"),
        (4, "Q", 1 << 39, "is cut off: tensor 'blk.0.attn_v.weight' ends at byte"),
        (4, "Q", 33, r"has the shape \[33, 32\], in blocks of 32"),
        (20, "I", 4, "has the type 4 of ggml"),
        (24, "Q", 1 << 50, "is cut off: tensor 'blk.0.attn_v.weight' ends at byte"),
        (24, "Q", 7, "is not aligned to 32 bytes"),
        (24, "Q", 0, "shares bytes with another"),
    ],
)
def test_a_tensor_that_is_not_in_the_file_is_named(
    file: Path, tmp_path: Path, offset: int, kind: str, number: int, says: str
) -> None:
    at = place_of(file, "blk.0.attn_v.weight") + offset
    with pytest.raises(StartupError, match=says):
        read_gguf(with_number(file, tmp_path / "lies.gguf", at, kind, number))


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.001, 0.2, 0.5, 0.9, 0.999])
def test_a_file_that_is_cut_off_is_refused(file: Path, tmp_path: Path, share: float) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(StartupError, match=r"cut\.gguf is no GGUF file"):
        read_gguf(cut)


def test_what_is_no_regular_file_is_refused(file: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "loop.gguf").symlink_to(tmp_path / "loop.gguf")
    (tmp_path / "nowhere.gguf").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "pipe.gguf")
    for name in ("folder", "loop", "nowhere", "pipe", "never"):
        with pytest.raises(StartupError, match=f"{name}.gguf"):
            read_gguf(tmp_path / f"{name}.gguf")
    (tmp_path / "link.gguf").symlink_to(file)
    assert read_gguf(tmp_path / "link.gguf").tensors == read_gguf(file).tensors


@given(changes=st.lists(st.tuples(st.integers(0, 30_000), st.binary(min_size=1, max_size=8)), max_size=6))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_anywhere_is_refused_or_leaves_a_header_within_the_file(
    file: Path, tmp_path: Path, changes: list[tuple[int, bytes]]
) -> None:
    content = bytearray(file.read_bytes())
    for at, piece in changes:
        at = min(at, len(content) - len(piece))
        content[at : at + len(piece)] = piece
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(content)
    try:
        header = read_gguf(damaged)
    except StartupError:
        return
    assert all(tensor.begin + tensor.size_bytes <= len(content) for tensor in header.tensors)
