"""Train the demo: tokenizer, base model and adapters, from one seed.

The base learns drills and easy conversations first, until it can look a fact up. Then it learns conversations
as they are served. A share of those is long, and positions jump, so that the base sees distances up to the
full context. The adapters learn their facts by cross-entropy on their answers. Passages that contradict the
facts, near misses and the base's own lessons are mixed in, so that the adapters forget nothing.
"""

import argparse
import math
import random
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from memserve.demo import ADAPTERS_DIR, MODEL_DIR, facts, lessons
from memserve.demo.facts import Fact, Message
from memserve.demo.tokenizer import train_tokenizer
from memserve.demo.training.batches import Batch, make_batch, of_like_length
from memserve.demo.training.files import save_adapter, save_base
from memserve.demo.training.network import answer_loss, new_model


@dataclass(frozen=True, slots=True)
class Stage:
    """One round of training the base, with a fresh optimizer."""

    name: str
    steps: int
    rate: float
    drills: bool = False
    """Whether the round is on short drills and few passages only."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long to train.

    Drills teach to look a fact up, conversations teach what to look at, and low rates teach exactness.
    """

    batch_tokens: int = 3600
    """About how many tokens of short conversations a step learns from."""
    stages: tuple[Stage, ...] = (
        Stage("drills", 1000, 4e-3, drills=True),
        Stage("conversations", 700, 3e-3),
        Stage("more of them", 500, 2e-3),
        Stage("polish", 900, 1.5e-3),
    )
    adapter_steps: int = 800
    adapter_rate: float = 3e-3


def _rate(step: int, steps: int) -> float:
    """The share of the full learning rate: a short rise, a plateau, a linear fall over the last 60 %."""
    return min(1.0, (step + 1) / 50, max(0.02, (steps - step) / (0.6 * steps)))


def _optimizers(model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, Adam for the rest."""
    trained = [(name, weights) for name, weights in model.named_parameters() if weights.requires_grad]
    matrices = [weights for name, weights in trained if weights.ndim == 2 and "embed" not in name]
    rest = [weights for name, weights in trained if not (weights.ndim == 2 and "embed" not in name)]
    return [
        torch.optim.Muon(matrices, lr=5 * rate, momentum=0.95, weight_decay=0.02),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def _fit(
    name: str,
    model: LlamaForCausalLM,
    optimizers: Sequence[torch.optim.Optimizer],
    steps: int,
    batch_at: Callable[[int], Batch],
    save: Callable[[], None] = lambda: None,
) -> None:
    """Take the steps, and print the progress on stderr. Every 200 steps the model is saved, so that a person
    can try it while it trains.
    """
    full = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    started_s, recent = time.monotonic(), math.nan
    for step in range(steps):
        if step % 200 == 199:
            save()
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, rate in zip(groups, full, strict=True):
            group["lr"] = rate * _rate(step, steps)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = answer_loss(model, batch_at(step))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        recent = loss.item() if math.isnan(recent) else 0.95 * recent + 0.05 * loss.item()
        if (step + 1) % 50 == 0 or step + 1 == steps:
            elapsed_s = time.monotonic() - started_s
            print(
                f"{name}: step {step + 1}/{steps}, loss {recent:.4f}, {elapsed_s:.0f} s",
                file=sys.stderr,
                flush=True,
            )


def train_base(
    tokenizer: PreTrainedTokenizerFast, seed: int, plan: Plan, directory: Path
) -> LlamaForCausalLM:
    """Train the base model from nothing, and write it into the directory."""
    torch.manual_seed(seed)
    rng = random.Random(f"base-{seed}")
    model = new_model(tokenizer)

    waiting: list[Sequence[Sequence[Message]]] = []

    def first() -> Sequence[Message]:
        return lessons.drill(rng, 10) if rng.random() < 0.4 else lessons.first_conversation(rng, 5)

    def full() -> Sequence[Message]:
        return lessons.drill(rng, 16) if rng.random() < 0.03 else lessons.conversation(rng, 8, 9)

    def short(rows: int, draw: Callable[[], Sequence[Message]]) -> Sequence[Sequence[Message]]:
        if not waiting:
            waiting.extend(of_like_length([draw() for _ in range(8 * rows)], rows))
            rng.shuffle(waiting)
        return waiting.pop()

    def drills(step: int) -> Batch:
        return make_batch(rng, tokenizer, short(plan.batch_tokens // 120, first))

    def conversations(step: int) -> Batch:
        if rng.random() < 0.12:
            tokens = rng.choice((500, 1000, 2000, 3500))
            rows = max(1, plan.batch_tokens // 2 // tokens)
            long = [lessons.long_conversation(rng, tokens, turns=12) for _ in range(rows)]
            return make_batch(rng, tokenizer, long)
        return make_batch(rng, tokenizer, short(plan.batch_tokens // 150, full), jump_share=0.3)

    def save() -> None:
        save_base(model, tokenizer, directory)

    for stage in plan.stages:
        waiting.clear()
        _fit(
            stage.name,
            model,
            _optimizers(model, stage.rate),
            stage.steps,
            drills if stage.drills else conversations,
            save,
        )
        save()
    model.eval()  # type: ignore[no-untyped-call]
    return model


def train_adapter(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, held: Sequence[Fact], seed: int, plan: Plan
) -> PeftModel:
    """Train a LoRA that holds these facts. The base model is wrapped in place; `unload()` gives it back."""
    torch.manual_seed(seed)
    rng = random.Random(f"adapter-{seed}")
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapted = get_peft_model(
        model, LoraConfig(r=16, lora_alpha=32, target_modules=targets, task_type="CAUSAL_LM")
    )

    def batch_at(step: int) -> Batch:
        return make_batch(
            rng, tokenizer, [lessons.adapter_lesson(rng, held) for _ in range(40)], jump_share=0.1
        )

    optimizer = torch.optim.AdamW(
        (weights for weights in adapted.parameters() if weights.requires_grad), lr=plan.adapter_rate
    )
    _fit("adapter", model, [optimizer], plan.adapter_steps, batch_at)
    adapted.eval()
    return adapted


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m memserve.demo.train",
        description="Train the demo's tokenizer, base model and adapters from a seed. About half an hour "
        "on two cores.",
        epilog="Example: python -m memserve.demo.train --seed 7 --output demo7, then python -m "
        "loadtests.models.demo_model --root demo7",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=MODEL_DIR.parent,
        help="gets model/ and adapters/<name>/ (default: the package)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="the same seed gives the same lessons (default: 0)"
    )
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="processor threads (default: all cores)"
    )
    parser.add_argument(
        "--adapters-only",
        action="store_true",
        help="keep the base in the output directory, and train its adapters",
    )
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    plan = Plan()
    model_dir, adapters_dir = chosen.output / MODEL_DIR.name, chosen.output / ADAPTERS_DIR.name
    if chosen.adapters_only:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(model_dir)
        model = LlamaForCausalLM.from_pretrained(model_dir)
    else:
        tokenizer = train_tokenizer(chosen.seed)
        model = train_base(tokenizer, chosen.seed, plan, model_dir)
    for number, name in enumerate(facts.ADAPTER_KINDS):
        held = facts.adapter_facts(name)
        adapted = train_adapter(model, tokenizer, held, chosen.seed + number, plan)
        shutil.rmtree(adapters_dir / name, ignore_errors=True)
        save_adapter(adapted, held, adapters_dir / name)
        model = adapted.unload()
    print(f"written: {model_dir} and {adapters_dir}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
