"""Ask the demo model with transformers, without a server: what the load tests and the tests measure it
with.
"""

from collections.abc import Callable, Sequence

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
    told: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """Answer every prompt greedily, in batches of rows padded on the left.

    model: a causal model of transformers, or one wrapped by peft. told: called after every batch with how
    many prompts are done. Returns the answers in the order of the prompts, without special tokens and without
    white space around them.
    """
    texts = [
        tokenizer.apply_chat_template(
            [each.as_dict() for each in one], tokenize=False, add_generation_prompt=True
        )
        for one in prompts
    ]
    by_length = sorted(range(len(texts)), key=lambda at: len(texts[at]))
    found = [""] * len(texts)
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
            made = _generate(model, batch["input_ids"], batch["attention_mask"], max_new_tokens)
        for at, row in zip(chosen, made, strict=True):
            found[at] = str(tokenizer.decode(row, skip_special_tokens=True)).strip()
        told(min(start + rows, len(by_length)))
    return found


def _generate(
    model: PreTrainedModel | PeftModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    max_new_tokens: int,
) -> torch.Tensor:
    """Continue [rows, tokens] greedily. Returns only the new tokens, [rows, new_tokens]."""
    inner: PreTrainedModel = model.get_base_model() if isinstance(model, PeftModel) else model  # type: ignore[operator]
    made = inner.generate(
        input_ids=input_ids, attention_mask=attention_mask, max_new_tokens=max_new_tokens, do_sample=False
    )
    assert isinstance(made, torch.Tensor)
    return made[:, input_ids.shape[1] :]
