"""The demo tokenizer: byte-level BPE trained on the demo world, and the chat template that goes with it."""

import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from memserve.demo import facts, lessons, words

PAD, BOS, EOS, END = "<|pad|>", "<|bos|>", "<|eos|>", "<|end|>"
ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
VOCABULARY = 3072

CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{- raise_exception('The roles are system, user and assistant, not ' + message['role']) }}"
    "{%- endif %}"
    "{{- '<|' + message['role'] + '|>' + message['content'] }}"
    "{{- eos_token if message['role'] == 'assistant' else '<|end|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)

# How recalled passages are put into the prompt of this model. The lessons have the numbered lines alone. The
# model answers as well with another line before them.
RECALL_TEMPLATE = (
    "{% if system %}\n{{ system }}\n{% endif %}\n"
    "Answer the question with the help of the numbered passages.\n"
    "{% for passage in passages %}\n[{{ passage.number }}] {{ passage.text }}\n{% endfor %}\n"
)

# Words with the space before them, numbers two digits at a time, signs, white space: a merge never crosses
# these borders.
_SPLIT = r" ?\p{L}+| ?\d{1,2}| ?[^\s\p{L}\d]+|\s+(?!\S)|\s+"


def _corpus(seed: int) -> Iterator[str]:
    rng = random.Random(f"tokenizer-{seed}")
    for _ in range(3000):
        yield "\n".join(message.content for message in lessons.conversation(rng, max_passages=8, max_turns=4))
    # Every word of the world and every pair of digits becomes one token, with a space before it and without
    # where it can stand so.
    groups = [value for value in vars(words).values() if isinstance(value, tuple)]
    groups += [
        *words.SECOND_WORDS.values(),
        *((kind, *attributes) for kind, attributes in facts.ATTRIBUTES.items()),
    ]
    single = {
        word
        for group in groups
        for entry in group
        for word in entry.replace(".", "").replace(",", "").split(" ")
    }
    openings = {*words.FIRST_WORDS, *words.GIVEN_NAMES}
    for _ in range(100):
        yield " ".join(["", *sorted(single)])
        yield "\n".join(sorted(openings))
        yield "".join(f" {pair:02d}{pair:02d}" for pair in range(100))


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer. It gives back any text at all unchanged: every byte is in its alphabet."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    special = [PAD, BOS, EOS, END, *ROLES.values()]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_corpus(seed), trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
        additional_special_tokens=[END, *ROLES.values()],
        chat_template=CHAT_TEMPLATE,
    )


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """The id of one token. Raises KeyError when the vocabulary does not have it."""
    return int(tokenizer.get_vocab()[token])


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json, chat_template.jinja and recall_template.jinja."""
    tokenizer.save_pretrained(directory)
    (directory / "recall_template.jinja").write_text(RECALL_TEMPLATE, encoding="utf-8")
