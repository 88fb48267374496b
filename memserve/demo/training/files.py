"""What training writes: a model directory, a PEFT directory, and `facts.json` beside its weights."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

from peft import PeftModel
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from memserve.demo import facts
from memserve.demo.facts import Fact
from memserve.demo.tokenizer import save_tokenizer

BASE_NAME = "memserve/demo"


def save_base(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write a Hugging Face directory. Its weights are float32, so that greedy answers do not hang on
    rounding.
    """
    directory.mkdir(parents=True, exist_ok=True)
    model.generation_config.do_sample = False
    model.generation_config.max_new_tokens = 32
    model.save_pretrained(directory, safe_serialization=True)
    save_tokenizer(tokenizer, directory)


def facts_document(held: Sequence[Fact]) -> list[dict[str, object]]:
    """What `facts.json` says: every fact, its expected answer, questions as trained on, and questions held
    out from training.
    """

    def asked(phrasings: Sequence[str], fact: Fact) -> list[str]:
        return [facts.question(random.Random(0), fact, [phrasing]).text for phrasing in phrasings]

    return [
        {
            "entity": fact.entity.name,
            "kind": fact.entity.kind,
            "attribute": fact.attribute,
            "value": fact.value,
            "answer": fact.answer,
            "questions": asked(facts.QUESTIONS, fact),
            "held_out_questions": asked(facts.HELD_OUT_QUESTIONS, fact),
        }
        for fact in held
    ]


def save_adapter(adapted: PeftModel, held: Sequence[Fact], directory: Path) -> None:
    """Write a PEFT directory that names no machine's path, with `facts.json` beside the weights."""
    adapted.peft_config["default"].base_model_name_or_path = BASE_NAME
    adapted.save_pretrained(str(directory), safe_serialization=True)
    (directory / "README.md").unlink(missing_ok=True)
    (directory / "facts.json").write_text(json.dumps(facts_document(held), indent=1) + "\n", encoding="utf-8")
