"""Shapes of tokenizers and chat templates as models bring them: named lists, dates, refusals, special tokens
in any of the files.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from tests.model.chat_templates import (
    ALTERNATES,
    BODY,
    CHATML,
    DATED,
    DEFINED,
    GENERATION,
    GENERATION_SCOPE,
    JSON,
    LAYOUT,
    MACROS,
    NAMESPACED,
    NO_SYSTEM,
    PREFILL,
    STRICT_KEYS,
    SYSTEM_IN_FIRST,
    TODAY,
    TOOLS,
)
from tests.model.chat_tokenizers import GPT4_SPLIT, byte_level, sentencepiece_bpe, unigram


@dataclass(frozen=True)
class Shape:
    """A tokenizer with its template, as files of a model's directory.

    config: of tokenizer_config.json. tokens: added to tokenizer.json. files: further files, by name.
    model_type: of config.json.
    """

    name: str
    template: Any
    tokenizer: Callable[[], str] = byte_level
    config: dict[str, Any] = field(default_factory=dict)
    tokens: tuple[Any, ...] = ()
    files: dict[str, Any] = field(default_factory=dict)
    model_type: str = "llama"

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer = Tokenizer.from_str(self.tokenizer())
        tokenizer.add_special_tokens([token for token in self.tokens if isinstance(token, str)])
        tokenizer.add_tokens([token for token in self.tokens if isinstance(token, AddedToken)])
        tokenizer.save(str(folder / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **self.config}
        if self.template is not None:
            config["chat_template"] = self.template
        documents = {
            "tokenizer_config.json": config,
            "config.json": {"model_type": self.model_type},
            **self.files,
        }
        for name, content in documents.items():
            (folder / name).parent.mkdir(exist_ok=True)
            text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
            (folder / name).write_text(text, encoding="utf-8")
        return folder


NAMED = [
    {"name": "default", "template": CHATML},
    {"name": "tool_use", "template": "tools"},
    {"name": "rag", "template": "rag"},
]
IM = ("<|im_start|>", "<|im_end|>")
BOS_EOS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def token(content: str, **flags: Any) -> dict[str, Any]:
    """As tokenizer_config.json and special_tokens_map.json write one."""
    return {
        "content": content,
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        **flags,
    }


SHAPES = [
    Shape("chatml", CHATML, tokens=IM),
    Shape(
        "chatml, another split",
        CHATML,
        lambda: byte_level(GPT4_SPLIT),
        tokens=IM,
        config={"eos_token": "<|im_end|>"},
    ),
    Shape("markers that are no tokens", BODY),
    Shape("alternation demanded", ALTERNATES, sentencepiece_bpe, BOS_EOS),
    Shape("system in the first turn", SYSTEM_IN_FIRST, sentencepiece_bpe, BOS_EOS),
    Shape(
        "system refused",
        NO_SYSTEM,
        tokens=("<bos>", "<start_of_turn>", "<end_of_turn>"),
        config={"bos_token": "<bos>"},
    ),
    Shape(
        "a date string",
        DATED,
        lambda: byte_level(GPT4_SPLIT),
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    Shape("today", TODAY, tokens=IM),
    Shape("generation", GENERATION, config={"eos_token": "<|end|>"}, tokens=("<|end|>",)),
    Shape("generation has a scope", GENERATION_SCOPE),
    Shape("tools and documents", TOOLS),
    Shape(
        "markers beyond ASCII",
        NAMESPACED,
        config={"bos_token": "<｜begin▁of▁sentence｜>"},
        tokens=("<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
    ),
    Shape("macros and loop controls", MACROS, unigram),
    Shape("layout with blocks on lines of their own", LAYOUT, unigram),
    Shape("tojson", JSON),
    Shape("what is defined, nothing set", DEFINED),
    Shape(
        "what is defined, all set",
        DEFINED,
        config={
            **BOS_EOS,
            "pad_token": "<pad>",
            "sep_token": "<sep>",
            "cls_token": "<cls>",
            "mask_token": "<mask>",
            "image_token": "<image>",
        },
    ),
    Shape("keys that messages may have", STRICT_KEYS, config={"eos_token": "</s>"}),
    Shape("assistant prefill", PREFILL, tokens=("<|user|>", "<|assistant|>", "<|end|>")),
    Shape("a named list", NAMED, tokens=IM),
    Shape("template in a file", None, tokens=IM, files={"chat_template.jinja": CHATML}),
    Shape("a file goes over the configuration", BODY, tokens=IM, files={"chat_template.jinja": CHATML}),
    Shape(
        "further templates in files",
        None,
        tokens=IM,
        files={"chat_template.jinja": CHATML, "additional_chat_templates/rag.jinja": "rag"},
    ),
    Shape(
        "tokens in added_tokens_decoder",
        CHATML,
        config={
            "eos_token": "<|im_end|>",
            "added_tokens_decoder": {
                "900": token("<|im_start|>", special=True),
                "901": token("<|im_end|>", special=True),
                "902": token("<tool>", normalized=True, special=False),
            },
        },
    ),
    Shape(
        "tokens in special_tokens_map.json",
        DEFINED,
        files={
            "special_tokens_map.json": {
                "bos_token": token("<s>"),
                "eos_token": "</s>",
                "additional_special_tokens": ["<|user|>", "<|end|>"],
            }
        },
    ),
    Shape(
        "extra_special_tokens in special_tokens_map.json",
        DEFINED,
        files={
            "special_tokens_map.json": {
                "bos_token": token("<s>"),
                "extra_special_tokens": ["<|user|>", token("<|end|>", rstrip=True)],
            }
        },
    ),
    Shape(
        "tokens in added_tokens.json",
        CHATML,
        config={"eos_token": "<|im_end|>"},
        files={"added_tokens.json": {"<|im_start|>": 700, "<|im_end|>": 701, "<extra>": 702}},
    ),
    Shape(
        "additional_special_tokens",
        CHATML,
        config={"additional_special_tokens": [*IM, "<|sep|>"], "eos_token": "<|im_end|>"},
    ),
    Shape(
        "extra_special_tokens, a mapping",
        DEFINED,
        config={
            "extra_special_tokens": {"image_token": "<image>", "audio_token": "<audio>"},
            "bos_token": "<s>",
        },
    ),
    Shape(
        "tokens that take their spaces",
        BODY,
        tokens=(
            AddedToken("<|user|>", lstrip=True, rstrip=True, special=True),
            AddedToken("<|end|>", rstrip=True, special=True),
            AddedToken("gate", single_word=True, normalized=True),
        ),
    ),
    Shape("special tokens are split", CHATML, tokens=IM, config={"split_special_tokens": True}),
    Shape(
        "a token written as an AddedToken",
        DEFINED,
        config={"bos_token": {"__type": "AddedToken", **token("<s>", special=True)}, "eos_token": "</s>"},
    ),
    Shape("unigram, system in the first turn", SYSTEM_IN_FIRST, unigram, BOS_EOS),
    Shape(
        "BOS and prefix space are not added twice",
        DATED,
        sentencepiece_bpe,
        {**BOS_EOS, "add_bos_token": True, "add_eos_token": True, "add_prefix_space": True, "legacy": False},
    ),
    *(
        Shape(
            f"{kind} of {model_type or 'no model type'}",
            CHATML,
            tokenizer,
            {**BOS_EOS, "tokenizer_class": kind},
            IM,
            model_type=model_type,
        )
        for kind, model_type, tokenizer in [
            ("LlamaTokenizer", "llama", sentencepiece_bpe),
            ("LlamaTokenizerFast", "mistral", sentencepiece_bpe),
            ("GPT2Tokenizer", "gpt2", byte_level),
            ("GPT2Tokenizer", "opt", byte_level),
            ("Qwen2Tokenizer", "qwen2", lambda: byte_level(GPT4_SPLIT)),
            ("Qwen2TokenizerFast", "qwen3", byte_level),
            ("GemmaTokenizer", "gemma2", sentencepiece_bpe),
            ("GPTNeoXTokenizerFast", "gpt_neox", byte_level),
            ("PreTrainedTokenizerFast", "phi3", sentencepiece_bpe),
            ("TokenizersBackend", "mixtral", unigram),
            ("AClassThatNobodyKnows", "llama", byte_level),
            (None, "llama", sentencepiece_bpe),
            (None, "qwen2", byte_level),
        ]
    ),
]
