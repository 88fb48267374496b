"""Ask the demo model with transformers, without a server. Tests and load tests measure the model with it."""

from collections.abc import Sequence

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memserve.demo.facts import Message


def answers(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[Message]],
    rows: int = 32,
    max_new_tokens: int = 16,
) -> list[str]:
    """Answer every prompt greedily, in batches of rows padded on the left.

    model: a causal model of transformers, perhaps wrapped by peft. Returns the answers in the order of the
    prompts, without special tokens and without white space around them.
    """
    texts = [
        tokenizer.apply_chat_template(
            [message.as_dict() for message in messages], tokenize=False, add_generation_prompt=True
        )
        for messages in prompts
    ]
    by_length = sorted(range(len(texts)), key=lambda at: len(texts[at]))
    replies = [""] * len(texts)
    for start in range(0, len(by_length), rows):
        chosen = by_length[start : start + rows]
        batch = tokenizer(
            [texts[at] for at in chosen],
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=False,
        )
        with torch.inference_mode():
            rows_of_tokens = _generate(model, batch["input_ids"], batch["attention_mask"], max_new_tokens)
        for at, tokens in zip(chosen, rows_of_tokens, strict=True):
            replies[at] = str(tokenizer.decode(tokens, skip_special_tokens=True)).strip()
    return replies


def _generate(
    model: PreTrainedModel | PeftModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    max_new_tokens: int,
) -> torch.Tensor:
    """Continue [rows, tokens] greedily. Returns only the new tokens, [rows, new_tokens]."""
    inner: PreTrainedModel = model.get_base_model() if isinstance(model, PeftModel) else model  # type: ignore[operator]
    sequences = inner.generate(
        input_ids=input_ids, attention_mask=attention_mask, max_new_tokens=max_new_tokens, do_sample=False
    )
    assert isinstance(sequences, torch.Tensor)
    return sequences[:, input_ids.shape[1] :]
