"""transformers' reader makes the model that the file has, or the file is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memserve.domain import Message, Role
from memserve.errors import StartupError
from memserve.model.chat import check_chat, open_chat
from memserve.model.convert import by_torch
from memserve.model.convert.gguf import read_gguf
from memserve.model.files import open_model
from tests.model.convert.tiny_gguf import CONTEXT, TinyGguf, tokens


def converted(tiny: TinyGguf, folder: Path, said: list[dict[str, Any]] | None = None) -> Path:
    target = folder / "model"
    target.mkdir()
    said = [] if said is None else said
    by_torch.convert(read_gguf(tiny.write(folder / "tiny.gguf")), target, "float32", said.append)
    return target


@pytest.mark.parametrize(
    ("kind", "off"),
    [
        ("F32", 0.0),
        ("F16", 3e-4),
        ("BF16", 2e-3),
        ("Q8_0", 3e-3),
        ("Q5_1", 0.03),
        ("Q4_0", 0.06),
        ("Q4_1", 0.05),
    ],
)
def test_the_weights_are_those_of_the_file(tmp_path: Path, kind: str, off: float) -> None:
    """off: by how much a weight may be off. The largest is about 0.4."""
    from safetensors.numpy import load_file

    said: list[dict[str, Any]] = []
    tiny = TinyGguf(kind=kind)
    written = load_file(converted(tiny, tmp_path, said) / "model.safetensors")
    expected = tiny.tensors()
    assert written.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_allclose(written[name], tensor, rtol=0, atol=off)
    assert said[-2] == {"tensors": len(expected), "of": len(expected)}
    assert said[-1] == {"step": "writing"}


def test_template_context_tokenizer_and_stop_tokens_are_the_models_own(tmp_path: Path) -> None:
    target = converted(TinyGguf(), tmp_path)
    model = open_model(target)
    assert (model.max_context_tokens, model.own_context_tokens) == (CONTEXT, CONTEXT)
    assert (model.architecture, model.dtype, model.vocab_size) == (
        "LlamaForCausalLM",
        "float32",
        len(tokens()),
    )
    template, tokenizer = open_chat(model)
    prompt = template.render([Message(Role.USER, "the gate")])
    assert prompt == "<|im_start|>user\nthe gate<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer.encode("<|im_start|>the<|im_end|>", add_special_tokens=False).ids
    assert ids == [1, tokens().index("the"), 2]
    stops = json.loads((target / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"]
    assert stops == [0, 2], "the end of the text, and the end of a turn"


def test_a_file_without_a_template_is_converted_and_needs_one_to_be_served(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="chat template"):
        check_chat(converted(TinyGguf(template=""), tmp_path))


@pytest.mark.parametrize(
    ("tiny", "says"),
    [
        (TinyGguf(architecture="mamba"), "memserve serves no MambaForCausalLM. Served"),
        (TinyGguf(values={"feed_forward_length": 1 << 31}), "describe a model of 8246337.* and it has 78464"),
        (TinyGguf(values={"vocab_size": 1 << 31}), "describe a model of 1374390.* weights"),
        (TinyGguf(values={"embedding_length": 32}), "describe a model of 39232 weights, and it has 78464"),
        (TinyGguf(values={"attention.head_count_kv": 4}), "describe a model of 86656 weights"),
        (TinyGguf(without=("blk.1.ffn_up",)), "describe a model of 78464 weights, and it has 72320"),
        (TinyGguf(beside=("blk.0.attn_q.bias",)), "describe a model of 78464 weights, and it has 78472"),
        (TinyGguf(without=("output_norm",), beside=tuple("abcdefgh")), "weights are missing"),
    ],
    ids=["mamba", "inner", "vocabulary", "hidden", "heads", "missing", "beside", "other names"],
)
def test_a_file_that_is_not_what_its_values_describe_is_refused(
    tmp_path: Path, tiny: TinyGguf, says: str
) -> None:
    with pytest.raises(StartupError, match=says):
        converted(tiny, tmp_path)
    assert not list((tmp_path / "model").glob("*.safetensors"))


@pytest.mark.parametrize("architecture", ["nosuch", "lfm2"])
def test_what_transformers_does_not_read_raises_as_transformers_does(
    tmp_path: Path, architecture: str
) -> None:
    with pytest.raises((ValueError, TypeError)):
        converted(TinyGguf(architecture=architecture), tmp_path)
