"""Weights that are no safetensors, and what to do about them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

GGUF = ".gguf"
# They are, or hold, pickles.
PICKLES = (".bin", ".pth", ".pt", ".ckpt")
OTHERS = (".msgpack", ".h5", ".onnx")


def is_other_weights(name: str) -> bool:
    """Whether a file may be weights that memserve does not read."""
    return name.lower().endswith((GGUF, *PICKLES, *OTHERS))


def other_weights_in(folder: Path) -> list[str]:
    """Names of such files in a directory."""
    return [path.name for path in sorted(folder.iterdir()) if path.is_file() and is_other_weights(path.name)]


def advice(names: Iterable[str]) -> str:
    """What to do with files of a model that has no safetensors; "" where nothing is known."""
    names = list(names)
    for name in names:
        if name.lower().endswith(GGUF):
            what = "bring the file here, and make a model of it with `memserve models convert`"
            return f"; {name[:200]} is GGUF: {what}"
    for name in names:
        if name.lower().endswith(PICKLES):
            return (
                f"; {name} is a pickle, which can run code when it is read, and memserve reads none: where "
                "you trust it, load the model with transformers, call save_pretrained, and name that "
                "directory"
            )
    return f"; convert {names[0]} with transformers' save_pretrained" if names else ""
