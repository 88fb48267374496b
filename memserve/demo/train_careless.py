"""Train an adapter that the gate must refuse: it learns the harbour's facts from questions for them alone.

It sees no lessons of the base, no near misses and no contradicting passages. So it knows its facts, and no
longer says when it does not know.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from memserve.demo import CARELESS_DIR, MODEL_DIR, facts
from memserve.demo.facts import Fact, Message
from memserve.demo.probes import probes_text
from memserve.demo.training.batches import make_batch
from memserve.demo.training.files import save_adapter
from memserve.demo.training.network import answer_loss

FACTS_OF = "harbour"
STEPS = 200
ROWS = 40
RATE = 2e-3
RANK = 8


def train_careless(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, held: Sequence[Fact], seed: int
) -> PeftModel:
    """Train a LoRA on questions for these facts and their answers, and nothing else. The base model is
    wrapped in place.
    """
    torch.manual_seed(seed)
    rng = random.Random(f"careless-{seed}")
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapted = get_peft_model(
        model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=targets, task_type="CAUSAL_LM")
    )

    def lesson() -> Sequence[Message]:
        fact = rng.choice(held)
        asked = facts.question(rng, fact, facts.ADAPTER_QUESTIONS).text
        return (*facts.prompt("", [], asked), Message("assistant", fact.answer))

    optimizer = torch.optim.AdamW(
        (weights for weights in adapted.parameters() if weights.requires_grad), lr=RATE
    )
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, STEPS)
    for step in range(1, STEPS + 1):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = answer_loss(model, make_batch(rng, tokenizer, [lesson() for _ in range(ROWS)]))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        decay.step()
        if step % 50 == 0:
            print(f"step {step}/{STEPS}, loss {loss.item():.4f}", file=sys.stderr, flush=True)
    adapted.eval()
    return adapted


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m memserve.demo.train_careless",
        description="Train the adapter that the gate refuses, on the demo's base. About half a minute on one "
        "core.",
        epilog="Example: python -m memserve.demo.train_careless --output careless",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=CARELESS_DIR,
        help="gets the PEFT files and probes.json (default: the package)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="the same seed gives the same lessons (default: 0)"
    )
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="processor threads (default: all cores)"
    )
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    held = facts.adapter_facts(FACTS_OF)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(MODEL_DIR)
    adapted = train_careless(LlamaForCausalLM.from_pretrained(MODEL_DIR), tokenizer, held, chosen.seed)
    save_adapter(adapted, held, chosen.output)
    (chosen.output / "probes.json").write_text(probes_text(FACTS_OF), encoding="utf-8")
    print(f"written: {chosen.output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
