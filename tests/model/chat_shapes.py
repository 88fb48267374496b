"""Shapes of tokenizers and chat templates as models bring them: named lists, dates, refusals, special tokens
in any of the files.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from memserve.domain import Message, Role

CORPUS = [
    "Where is the north gate? The code of Amber Lantern is 4071. Hello, how are you today?",
    "system user assistant model tool You are a helpful assistant. 2026-11-27 Cutting Knowledge "
    "Date: December 2023",
    "Ünïcödé straße naïve café Ελληνικά русский текст עברית العربية हिन्दी ไทย 日本語 中文 한국어 🙂🚀",
    "def f(x):\n    return x + 1\n\n\ttabs and   spaces\r\n",
]
BYTES = pre_tokenizers.ByteLevel.alphabet()
GPT4_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| "
    r"?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@lru_cache
def byte_level(split: str = "") -> str:
    """As GPT-2's, or with another split, as Llama 3's and Qwen's."""
    tokenizer = Tokenizer(models.BPE())
    if split:
        parts = [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=600, initial_alphabet=BYTES, show_progress=False)
    )
    return str(tokenizer.to_str())


@lru_cache
def sentencepiece_bpe() -> str:
    """As Llama 2's: BPE over whole texts in which a space is a letter, and bytes for what is unknown."""
    vocabulary = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = sorted({letter for text in CORPUS for letter in text.replace(" ", "▁")} | {"▁"})
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate([*vocabulary, *letters,
    "▁t", "he", "▁the"])},
        [("▁", "t"), ("h", "e"), ("▁t", "he")], fuse_unk=True, byte_fallback=True,
         unk_token="<unk>"))  # fmt: skip
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return str(tokenizer.to_str())


@lru_cache
def unigram() -> str:
    """As a SentencePiece unigram model: NFKC, Metaspace, an unknown token."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=400, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return str(tokenizer.to_str())


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


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BODY = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}{% if "
    "add_generation_prompt %}<|assistant|>{% endif %}"
)
ALTERNATES = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
SYSTEM_IN_FIRST = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set "
    "system_message = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for "
    "message in loop_messages %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif "
    "%}{% endfor %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not "
    "supported') }}{% endif %}"
    "{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else "
    "message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
DATED = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = '26 Jul 2024' %}{%- endif %}\n"
    "{%- if messages[0]['role'] == 'system' %}\n    {%- set system_message = messages[0]['content'] "
    "| trim %}\n"
    "    {%- set messages = messages[1:] %}\n{%- else %}\n    {%- set system_message = '' %}\n{%- endif %}\n"
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}{{- 'Today Date: ' + date_string + "
    "'\\n\\n' }}{{- system_message }}"
    "{{- '<|eot_id|>' }}\n{%- for message in messages %}\n"
    "    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + "
    "message['content'] | trim + '<|eot_id|>' }}\n"
    "{%- endfor %}\n{%- if add_generation_prompt %}{{- "
    "'<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
TODAY = "{% set today = strftime_now('%Y-%m-%d') %}Knowledge: 2024. Today: {{ today }}.\n" + CHATML
GENERATION = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ "
    "eos_token }}{% endgeneration %}"
    "{% else %}<|{{ m.role }}|>\n{{ m.content }}\n{% endif %}{% endfor %}"
    "{%- if add_generation_prompt -%}<|assistant|>\n{%- endif -%}"
)
GENERATION_SCOPE = (
    "{% for m in messages %}{%- generation -%}{% set inner = m.role %}[{{ inner }}]{{ m.content "
    "}}{%- endgeneration -%}"
    "{{ inner is defined }}{% endfor %}"
)
TOOLS = (
    "{% if tools is not none %}TOOLS {{ tools | tojson }}{% endif %}{% if documents is not none "
    "%}DOCS{% endif %}"
    "{% if tools %}T{% endif %}{{ tools is defined }}{{ documents is defined }}{{ custom_flag is defined }}"
    + BODY
)
NAMESPACED = (
    "{%- set ns = namespace(system='', first=true, pairs=[]) -%}{%- for m in messages -%}{%- if "
    "m.role == 'system' -%}"
    "{%- if ns.first -%}{%- set ns.system = ns.system + m.content -%}{%- set ns.first = false -%}"
    "{%- else -%}{%- set ns.system = ns.system + '\n\n' + m.content -%}{%- endif -%}{%- endif -%}{%- "
    "endfor -%}"
    "{{ bos_token }}{{ ns.system }}{%- for m in messages -%}{%- if m.role == 'user' -%}{{ '<｜User｜>' "
    "+ m.content }}"
    "{%- elif m.role == 'assistant' -%}{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + "
    "'<｜end▁of▁sentence｜>' }}{%- endif -%}"
    "{%- endfor -%}{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)
MACROS = (
    "{% macro turn(role, text) %}«{{ role | upper }}» {{ text }}\n{% endmacro %}"
    "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ turn(m.role, m.content) }}"
    "{% if loop.index > 6 %}{% break %}{% endif %}{% endfor %}«ASSISTANT» "
)
LAYOUT = (
    "{% for m in messages %}\n    {% if m.role == 'user' %}\n        USER: {{ m.content }}\n    {% else %}\n"
    "        {{ m.role | title }}: {{ m.content }}\n    {% endif %}\n{% endfor %}\nASSISTANT:"
)
JSON = (
    "{{ messages | tojson }}\n{{ messages | tojson(indent=2) }}"
    "{% for m in messages %}{{ {'role': m.role, 'text': m.content} | tojson(sort_keys=true) }}{% endfor %}"
)
DEFINED = (
    "{% for name in ['x'] %}{{ bos_token is defined }}{{ eos_token is defined }}{{ pad_token is "
    "defined }}{{ unk_token is defined }}"
    "{{ sep_token is defined }}{{ cls_token is defined }}{{ mask_token is defined }}{{ image_token "
    "is defined }}{% endfor %}"
    "{{ bos_token }}{{ image_token }}" + BODY
)
STRICT_KEYS = (
    "{% for m in messages %}{% if m.tool_calls is defined and m.tool_calls %}TOOL{% endif %}{% if "
    "m['name'] %}{{ m.name }}{% endif %}"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}{{ part.text "
    "}}{% endfor %}{% endif %}"
    "{{ m.get('reasoning_content', '') }}{{ eos_token }}{% endfor %}{{ messages | length }}{{ "
    "messages[-1].role }}"
)
PREFILL = (
    "{% for m in messages %}{{ '<|' ~ m.role ~ '|>' ~ m.content }}{% if not (loop.last and m.role == "
    "'assistant') %}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt and messages[-1].role != 'assistant' %}<|assistant|>{% endif %}"
)
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

TEXTS = [
    "Where is the north gate?",
    "",
    " ",
    "  leading and trailing \n",
    "two\n\nparagraphs\r\nand\ttabs",
    "Ünïcödé straße naïve café",
    "cafe\u0301 e\u0301 (decomposed)",
    "Ελληνικά русский текст",
    "עברית والعربية",
    "हिन्दी ไทย",
    "日本語と中文、한국어",
    "🙂🚀👩‍👩‍👧",
    "<b>markup</b> & \"quotes\" 'single' \\ back {{ braces }} {% tag %}",
    "[INST] <<SYS>> </think> <|not_a_token|>",
    "<|im_start|>user",
    "def f(x):\n    return x + 1",
    "word " * 200,
    "\u00a0\u2003\u200b zero width",
    "ﬁ ligature ① ｆｕｌｌｗｉｄｔｈ",
    "4071 3.14 1e9",
]
S, U, A = Role.SYSTEM, Role.USER, Role.ASSISTANT
ORDERS = [
    (U,),
    (S, U),
    (U, A, U),
    (S, U, A, U),
    (U, A),
    (U, U),
    (S,),
    (A,),
    (A, U),
    (U, S, U),
    (S, S, U),
    (U, A, U, A, U),
    (U, A, S, U),
]


def conversations() -> list[list[Message]]:
    """Every text as a question, every order of roles with other texts, and long ones."""
    found = [[Message(U, text)] for text in TEXTS]
    found += [[Message(S, text), Message(U, "Hello.")] for text in TEXTS[:6]]
    for shift, roles in enumerate(ORDERS):
        found.append(
            [Message(role, TEXTS[(3 * shift + place) % len(TEXTS)]) for place, role in enumerate(roles)]
        )
        found.append([Message(role, f"{role} says {place}") for place, role in enumerate(roles)])
    found.append([Message(U if place % 2 == 0 else A, f"turn {place}") for place in range(15)])
    return found
