"""Train the demo: tokenizer, base model and adapters, from one seed.

The base learns in two stages: first drills and easy conversations, until it can look a fact up; then
conversations as they are served, a share of them long, with positions that jump so that distances up to the
full context are seen. The adapters learn their facts by cross-entropy on their answers, mixed with passages
that contradict them, near misses, and the base's own lessons, so that nothing is forgotten.
"""

import argparse
import json
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
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from memserve.demo import ADAPTERS_DIR, MODEL_DIR, facts, lessons
from memserve.demo.facts import Fact, Message
from memserve.demo.tokenizer import BOS, END, EOS, PAD, ROLES, save_tokenizer, token_id, train_tokenizer

MAX_POSITIONS = 8192
BASE_NAME = "memserve/demo"
_IGNORED = -100
_NARROW_TOKENS = 400


@dataclass(frozen=True, slots=True)
class Stage:
    """One round of training the base, with a fresh optimizer. drills: on short drills and few passages
    only.
    """

    name: str
    steps: int
    rate: float
    drills: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """How long to train. One short step is about batch_tokens tokens of short conversations.

    Looking a fact up is learned by drills, what to look at by conversations, and exactness by low rates.
    """

    batch_tokens: int = 3600
    stages: tuple[Stage, ...] = (
        Stage("drills", 1000, 4e-3, drills=True),
        Stage("conversations", 700, 3e-3),
        Stage("more of them", 500, 2e-3),
        Stage("polish", 900, 1.5e-3),
    )
    adapter_steps: int = 800
    adapter_rate: float = 3e-3


@dataclass(frozen=True, slots=True)
class Batch:
    """ids, positions, targets: [rows, tokens]; targets are shifted by one and hold -100 where nothing is to
    be learned.
    """

    ids: Tensor
    positions: Tensor
    targets: Tensor


def render(messages: Sequence[Message]) -> str:
    """What the chat template makes of the messages."""
    turns = (
        f"{ROLES[each.role]}{each.content}{EOS if each.role == 'assistant' else END}" for each in messages
    )
    return BOS + "".join(turns)


def _targets(ids: Sequence[int], assistant: int, eos: int) -> list[int]:
    """The next token where it belongs to an answer (its end included), and -100 elsewhere."""
    targets, answering = [], False
    for current, following in zip(ids, [*ids[1:], eos], strict=True):
        answering = current == assistant or (answering and current != eos)
        targets.append(following if answering else _IGNORED)
    return targets


def make_batch(
    rng: random.Random,
    tokenizer: PreTrainedTokenizerFast,
    conversations: Sequence[Sequence[Message]],
    jump_share: float = 0.0,
) -> Batch:
    """Tokenize conversations into one batch, padded on the right.

    jump_share: how many rows get positions that jump ahead between lines, up to the whole context.
    """
    rows: list[list[int]] = tokenizer([render(each) for each in conversations], add_special_tokens=False)[
        "input_ids"
    ]
    assistant, eos, pad = (token_id(tokenizer, each) for each in (ROLES["assistant"], EOS, PAD))
    newline, user = token_id(tokenizer, "Ċ"), token_id(tokenizer, ROLES["user"])
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad)
    targets = torch.full((len(rows), width), _IGNORED)
    steps = torch.ones(len(rows), width, dtype=torch.long)
    steps[:, 0] = 0
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
        targets[place, : len(row)] = torch.tensor(_targets(row, assistant, eos))
        if rng.random() < jump_share:
            borders = [at for at, token in enumerate(row) if token in (newline, user) and rng.random() < 0.5]
            room = rng.randrange(MAX_POSITIONS // 2)
            for at in borders:
                steps[place, at] += rng.randrange(2 * room // len(borders) + 1)
    positions = steps.cumsum(1).clamp(max=MAX_POSITIONS - 1)
    return Batch(ids, positions, targets)


def of_like_length(
    conversations: Sequence[Sequence[Message]], rows: int
) -> list[Sequence[Sequence[Message]]]:
    """Sort conversations by length and cut them into groups of rows, so that a batch has little padding."""
    ordered = sorted(conversations, key=lambda each: sum(len(message.content) for message in each))
    return [ordered[start : start + rows] for start in range(0, len(ordered), rows)]


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention over [rows, heads, tokens, head_dim], by the way that is quickest on a CPU.

    The flash kernel is slow backwards in bfloat16; narrow batches are quicker without it.
    """
    tokens = query.shape[2]
    if tokens > _NARROW_TOKENS:
        return scaled_dot_product_attention(
            query.float(), key.float(), value.float(), is_causal=True, enable_gqa=True
        )
    groups = query.shape[1] // key.shape[1]
    query, key, value = (
        query.bfloat16(),
        key.bfloat16().repeat_interleave(groups, 1),
        value.bfloat16().repeat_interleave(groups, 1),
    )
    ahead = torch.full((tokens, tokens), -torch.inf, dtype=torch.bfloat16).triu(1)
    scores = torch.baddbmm(
        ahead.expand(query.shape[0] * query.shape[1], tokens, tokens),
        query.flatten(0, 1),
        key.flatten(0, 1).transpose(1, 2),
        alpha=query.shape[-1] ** -0.5,
    )
    return (scores.softmax(-1, dtype=torch.bfloat16) @ value.flatten(0, 1)).view_as(query)


def answer_loss(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """Mean cross-entropy over the tokens of the answers.

    The layers' own projections run (with their LoRA, if they have one), but positions may jump and only
    answers reach the head.
    """
    base, head_dim = model.model, int(model.config.head_dim or 0)
    rows, width = batch.ids.shape
    hidden = base.embed_tokens(batch.ids)
    cos, sin = base.rotary_emb(hidden, batch.positions)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)

    def rotated(heads: Tensor) -> Tensor:
        left, right = heads.chunk(2, dim=-1)
        turned: Tensor = heads * cos + torch.cat((-right, left), dim=-1) * sin
        return turned

    def split(states: Tensor) -> Tensor:
        return states.view(rows, width, -1, head_dim).transpose(1, 2)

    for layer in base.layers:
        attention, normed = layer.self_attn, layer.input_layernorm(hidden)
        query, key, value = (
            rotated(split(attention.q_proj(normed))),
            rotated(split(attention.k_proj(normed))),
            split(attention.v_proj(normed)),
        )
        mixed = _attend(query, key, value)
        hidden = hidden + attention.o_proj(mixed.transpose(1, 2).reshape(rows, width, -1))
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    learned = batch.targets != _IGNORED
    logits = model.lm_head(base.norm(hidden[learned]))
    return cross_entropy(logits.float(), batch.targets[learned])


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained model of the demo's shape: about one and a quarter million parameters."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": 20000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    _look_back(model)
    return model


def _look_back(model: LlamaForCausalLM) -> None:
    """Let head h of the first layer begin by looking at the token h + 1 places back.

    Looking up a fact needs the words before a value to be known at the value. Found by chance that takes most
    of the training; begun so it takes none. One dimension of every embedding is constant; queries and keys
    turn it into a peak of the rotary phases.
    """
    config, attention = model.config, model.model.layers[0].self_attn
    head_dim = int(config.head_dim or 0)
    half, strength = head_dim // 2, 1.25
    angles = torch.as_tensor(model.model.rotary_emb.inv_freq).float()
    angles = angles[angles > 0.02]
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 0.25
        query = attention.q_proj.weight.view(config.num_attention_heads, head_dim, -1)
        key = attention.k_proj.weight.view(-1, head_dim, config.hidden_size)
        query.mul_(0.1)
        key.mul_(0.1)
        key[:, : len(angles), 0] = strength
        for head in range(config.num_attention_heads):
            query[head, : len(angles), 0] = strength * torch.cos(angles * (head + 1))
            query[head, half : half + len(angles), 0] = -strength * torch.sin(angles * (head + 1))


def _rate(step: int, steps: int) -> float:
    """The share of the full learning rate: a short rise, a plateau, a linear fall over the last 60 %."""
    return min(1.0, (step + 1) / 50, max(0.02, (steps - step) / (0.6 * steps)))


def _optimizers(model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, Adam for the rest."""
    trained = [(name, each) for name, each in model.named_parameters() if each.requires_grad]
    matrices = [each for name, each in trained if each.ndim == 2 and "embed" not in name]
    rest = [each for name, each in trained if not (each.ndim == 2 and "embed" not in name)]
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
    """Take so many steps; tell the progress on stderr, and save every 200 steps so that the model can be
    tried while it trains.
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


def save_base(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write a Hugging Face directory. Its weights are float32, so that greedy answers do not hang on
    rounding.
    """
    directory.mkdir(parents=True, exist_ok=True)
    model.generation_config.do_sample = False
    model.generation_config.max_new_tokens = 32
    model.save_pretrained(directory, safe_serialization=True)
    save_tokenizer(tokenizer, directory)


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
        (each for each in adapted.parameters() if each.requires_grad), lr=plan.adapter_rate
    )
    _fit("adapter", model, [optimizer], plan.adapter_steps, batch_at)
    adapted.eval()
    return adapted


def facts_document(held: Sequence[Fact]) -> list[dict[str, object]]:
    """What `facts.json` says: every fact, its expected answer, questions as trained on, and questions held
    out from training.
    """

    def asked(phrasings: Sequence[str], one: Fact) -> list[str]:
        return [facts.question(random.Random(0), one, [each]).text for each in phrasings]

    return [
        {
            "entity": one.entity.name,
            "kind": one.entity.kind,
            "attribute": one.attribute,
            "value": one.value,
            "answer": one.answer,
            "questions": asked(facts.QUESTIONS, one),
            "held_out_questions": asked(facts.HELD_OUT_QUESTIONS, one),
        }
        for one in held
    ]


def save_adapter(adapted: PeftModel, held: Sequence[Fact], directory: Path) -> None:
    """Write a PEFT directory that names no machine's path, with `facts.json` beside the weights."""
    adapted.peft_config["default"].base_model_name_or_path = BASE_NAME
    adapted.save_pretrained(str(directory), safe_serialization=True)
    (directory / "README.md").unlink(missing_ok=True)
    (directory / "facts.json").write_text(json.dumps(facts_document(held), indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m memserve.demo.train",
        description="Train the demo's tokenizer, base model and adapters from a seed. About half an hour "
        "on two "
        "cores.",
        epilog="Example: python -m memserve.demo.train --seed 7 --output demo7, then python -m "
        "loadtests.demo_model --root demo7",
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
