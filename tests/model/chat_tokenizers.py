"""Tokenizers of the kinds that models have, trained on a few lines."""

from __future__ import annotations

from functools import lru_cache

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

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
