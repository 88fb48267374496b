"""Train the demo's logit experts, from one seed: about six minutes on one core.

An expert begins as a copy of the demo model. All of its weights learn facts of its own in the lessons that an
adapter gets, so that it keeps what the base can. Served, it shifts the base's logits by what it has learned:
its own logits less the base's.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from memserve.demo import EXPERTS_DIR, MODEL_DIR, lessons
from memserve.demo.experts import EXPERT_KINDS, expert_facts
from memserve.demo.facts import Fact
from memserve.demo.training.batches import make_batch
from memserve.demo.training.files import facts_document
from memserve.demo.training.network import answer_loss

STEPS, ROWS, RATE = 900, 40, 1e-3
# The share of the way from the base's weights to the trained weights. A little short of the end, more of the
# base's abilities are left. Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (arXiv
# 2109.01903).
KEPT_WAY = 0.9


def train_expert(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, held: Sequence[Fact], seed: int, steps: int
) -> None:
    """Teach the model these facts, in place."""
    before = [weights.detach().clone() for weights in model.parameters()]
    torch.manual_seed(seed)
    rng = random.Random(f"expert-{seed}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.0)
    started_s = time.monotonic()
    for step in range(steps):
        # A short rise, a plateau, and a fall over the last half.
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 30, max(0.02, 2 * (steps - step) / steps))
        batch = make_batch(
            rng, tokenizer, [lessons.adapter_lesson(rng, held) for _ in range(ROWS)], jump_share=0.1
        )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = answer_loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 50 == 0:
            elapsed_s = time.monotonic() - started_s
            print(
                f"expert: step {step + 1}/{steps}, loss {loss.item():.4f}, {elapsed_s:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    with torch.no_grad():
        for weights, old in zip(model.parameters(), before, strict=True):
            weights.lerp_(old, 1 - KEPT_WAY)


def save_expert(model: LlamaForCausalLM, held: Sequence[Fact], directory: Path) -> None:
    """Write a module directory of kind logit_expert: two configs, weights in bfloat16, and `facts.json`
    beside them.
    """
    directory.mkdir(parents=True, exist_ok=True)
    # Tied to the embeddings: transformers saves no head of its own.
    weights = {
        name: tensor.to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((MODEL_DIR / "config.json").read_text(encoding="utf-8"))
    (directory / "config.json").write_text(
        json.dumps({**config, "dtype": "bfloat16"}, indent=2) + "\n", encoding="utf-8"
    )
    (directory / "expert_config.json").write_text(
        json.dumps({"kind": "logit_expert", "anti_expert": "base"}, indent=2) + "\n", encoding="utf-8"
    )
    (directory / "facts.json").write_text(json.dumps(facts_document(held), indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m memserve.demo.train_expert", description=__doc__)
    parser.add_argument(
        "--output",
        type=Path,
        default=EXPERTS_DIR,
        help="gets a folder for each expert (default: the package's own)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="the same seed gives the same lessons (default: 0)"
    )
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="processor threads (default: all cores)"
    )
    parser.add_argument("--steps", type=int, default=STEPS, help=f"training steps (default: {STEPS})")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(MODEL_DIR)
    for number, name in enumerate(EXPERT_KINDS):
        model = LlamaForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
        train_expert(model, tokenizer, expert_facts(name), chosen.seed + number, chosen.steps)
        save_expert(model, expert_facts(name), chosen.output / name)
    print(f"written: {chosen.output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
