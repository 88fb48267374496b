"""Model directories as people have them: sizes under any family's names, files that are not what their names
say.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from memserve.config import Settings
from memserve.demo import MODEL_DIR
from memserve.errors import StartupError
from memserve.model import by_transformers
from memserve.model import files as model_files
from memserve.model.checks import check_model
from memserve.model.files import open_model

BASE = json.loads((MODEL_DIR / "config.json").read_text(encoding="utf-8"))
GEMMA3 = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "text_config": BASE,
    "vision_config": {},
}
GPT2 = {
    "model_type": "gpt2",
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 1024,
    "vocab_size": 1024,
}
FALCON = {
    "model_type": "falcon",
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 512,
}
BLOOM = {"model_type": "bloom", "hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 512}


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked in a process of its own, without four seconds for each."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def asked(what: str, path: Path, digest: str) -> dict[str, Any]:
        try:
            return by_transformers.sizes(path)
        except Exception as error:
            raise StartupError(
                f"transformers cannot read the {what} of {path}: {type(error).__name__}"
            ) from None

    monkeypatch.setattr(model_files, "asked", asked)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MODEL_DIR, tmp_path / "model"))


def with_config(model: Path, config: Any) -> Path:
    (model / "config.json").write_text(
        config if isinstance(config, str) else json.dumps(config), encoding="utf-8"
    )
    return model


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (
            BASE,
            (BASE["vocab_size"], BASE["num_hidden_layers"], BASE["num_key_value_heads"], BASE["head_dim"]),
        ),
        (
            GEMMA3,
            (BASE["vocab_size"], BASE["num_hidden_layers"], BASE["num_key_value_heads"], BASE["head_dim"]),
        ),
        (GPT2, (1024, 2, 2, 32)),
        (FALCON, (512, 3, 4, 16)),
        (BLOOM, (512, 2, 4, 16)),
    ],
    ids=["top level", "text_config", "GPT-2's names", "defaults", "no context"],
)
def test_sizes_are_read_as_transformers_reads_them(
    model: Path, config: dict[str, Any], sizes: tuple[int, ...]
) -> None:
    files = open_model(with_config(model, config))
    assert (files.vocab_size, files.layers, files.kv_heads, files.head_size) == sizes


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("config.json", "[]", "config.json must hold an object, not list"),
        ("config.json", "{", "config.json is not JSON"),
        ("config.json", POINTER, "run `git lfs pull` in the model's directory"),
        ("config.json", b"\xff", "config.json is not UTF-8"),
        ("config.json", '{"model_type": "vit"}', "config.json"),
        (
            "config.json",
            '{"architectures": ["LlamaForCausalLM"], "model_type": "nobody-knows-it"}',
            "transformers cannot read the sizes of",
        ),
        ("tokenizer.json", POINTER, "run `git lfs pull` in the model's directory"),
        ("tokenizer_config.json", "7", "tokenizer_config.json must hold an object, not int"),
        ("chat_template.jinja", "{% for %}", "chat_template.jinja is no chat template"),
        ("model.safetensors", POINTER, "run `git lfs pull` in the model's directory"),
        ("model.safetensors", b"\x00" * 100, "model.safetensors is damaged or cut off"),
        ("model.safetensors", b"", "model.safetensors is damaged or cut off"),
        (
            "model.safetensors.index.json",
            '{"weight_map": {"a": "model-00002-of-00002.safetensors"}}',
            "has no model-00002-of-00002",
        ),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_one_line(
    model: Path, file: str, content: str | bytes, says: str
) -> None:
    (model / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(StartupError) as refused:
        check_model(Settings(model=str(model)))
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
    # transformers alone knows which of its files it misses.
    assert file in str(refused.value) or says.startswith("transformers")


def test_weights_that_are_cut_off_are_found(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(StartupError, match=r"model\.safetensors is damaged or cut off"):
        check_model(Settings(model=str(model)))


def test_weights_of_another_format_are_named(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(
        StartupError,
        match=r"no weights in safetensors files; pytorch_model\.bin is a pickle.*save_pretrained",
    ):
        check_model(Settings(model=str(model)))


def test_a_model_that_is_no_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for name in (str(tmp_path / "nowhere"), str(tmp_path / "file"), "./nowhere"):
        with pytest.raises(StartupError, match="no such directory"):
            check_model(Settings(model=name))


@pytest.mark.parametrize(
    ("config", "experts"),
    [
        (BASE, False),
        ({**BASE, "num_local_experts": 8}, True),
        ({**BASE, "num_experts": 1}, False),
        ({**BASE, "num_experts": None}, False),
        ({**GEMMA3, "text_config": BASE}, False),
    ],
)
def test_a_mixture_of_experts_is_known_by_its_numbers(
    model: Path, config: dict[str, Any], experts: bool
) -> None:
    assert open_model(with_config(model, config)).has_experts == experts
