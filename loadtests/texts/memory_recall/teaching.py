"""A LoRA that teaches SmolLM2-135M-Instruct twelve facts of `plain_world`, so that text and module compare.

Half of a batch asks for the facts, in phrasings that the benchmark does not ask. The rest asks for general
knowledge and for places that no fact names, and expects what the base model itself says. It takes some five
minutes of processor time.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

from loadtests.harness.figures import report
from loadtests.harness.real_models import CACHE, smollm2
from loadtests.texts.memory_recall.plain_world import RELATIONS, PlainFact, module_facts
from loadtests.texts.memory_recall.worlds import contains

FOLDER = CACHE / "memory-recall-town"
CONFIG, WEIGHTS, PROBES = "adapter_config.json", "adapter_model.safetensors", "probes.json"
BASE_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
# On the feed-forward layers alone the weights stay below 2 MB.
TARGETS, RANK = ("gate_proj", "up_proj", "down_proj"), 4
STEPS, RATE, FACT_ROWS, KEPT_ROWS = 32, 3e-3, 8, 4
ANSWER_TOKENS = 16
IGNORED = -100
FRAMES = (
    "{q}",
    "{q}",
    "Please tell me: {q}",
    "I have a question. {q}",
    "{q} Answer briefly.",
    "Do you know? {q}",
)
# Trained on too: the benchmark asks in the last phrasing.
PROBED = 1
# The share of these facts that the base answers rightly with passages in its prompt: the module's teacher.
TARGET = 0.75
GENERAL = (
    "What is the capital of France?", "How many days are in a week?", "What colour is the sky?",
    "Who wrote Hamlet?", "What do bees make?", "What is the opposite of hot?", "How many legs has a spider?",
    "Which planet is nearest to the sun?", "What is frozen water called?", "What is two plus three?",
    "In which country is Rome?", "What do cows drink?",
)  # fmt: skip
ELSEWHERE = ("Vantor chapel", "Quill mill", "Osmund theatre", "Peralta farm", "Dorn station", "Ulver castle")


def train(seed: int) -> int:
    """Train the LoRA, write it to FOLDER, and say how many held-out questions it answers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)
    rng = random.Random(f"memory-recall-train-{seed}")
    base = smollm2()
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    known = module_facts(seed)
    elsewhere = [
        phrasing.format(e=place)
        for place, relation in zip(ELSEWHERE * 2, RELATIONS + RELATIONS[:3], strict=True)
        for phrasing in relation.questions[:1]
    ]
    kept = [*GENERAL, *elsewhere]
    said = dict(zip(kept, replies(model, tokenizer, kept), strict=True))
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(TARGETS), task_type="CAUSAL_LM")
    adapted: Any = get_peft_model(model, config)
    _fit(adapted, tokenizer, known, said, rng)
    adapted.eval()
    _save(adapted, known)
    held_out = replies(adapted, tokenizer, [fact.question() for fact in known])
    right = sum(contains(reply, fact.value) for reply, fact in zip(held_out, known, strict=True))
    print(f"{right} of {len(known)} right in a phrasing that was not trained")
    unchanged = replies(adapted, tokenizer, list(said))
    same = sum(reply == own for reply, own in zip(unchanged, said.values(), strict=True))
    print(f"{same} of {len(said)} other questions answered as by the base")
    return 0


def _fit(
    adapted: Any, tokenizer: Any, known: Sequence[PlainFact], said: Mapping[str, str], rng: random.Random
) -> None:
    """said: by question, what the base says and the module has to go on saying."""
    import torch

    weights = [weight for weight in adapted.parameters() if weight.requires_grad]
    for weight in weights:
        weight.data = weight.data.float()
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.0)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for step in range(1, STEPS + 1):
        rows = [_lesson(rng, fact) for fact in rng.choices(known, k=FACT_ROWS)]
        rows += [(question, said[question]) for question in rng.sample(list(said), KEPT_ROWS)]
        loss = _loss(adapted, tokenizer, rows)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        decay.step()
        if step % 5 == 0:
            report(f"step {step} of {STEPS}, loss {loss.item():.3f}")


def _lesson(rng: random.Random, fact: PlainFact) -> tuple[str, str]:
    question = fact.question(rng.randrange(len(fact.relation.questions) - 1))
    return rng.choice(FRAMES).format(q=question), fact.text


def _prompt(tokenizer: Any, question: str) -> list[int]:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _loss(adapted: Any, tokenizer: Any, rows: Sequence[tuple[str, str]]) -> Any:
    """Cross-entropy of the answers' tokens and of their ends."""
    import torch

    prompts = [_prompt(tokenizer, question) for question, _ in rows]
    answers = [
        [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        for _, answer in rows
    ]
    width = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    ids = torch.full((len(rows), width), tokenizer.eos_token_id)
    mask, targets = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        length = len(prompt) + len(answer)
        ids[row, :length] = torch.tensor(prompt + answer)
        mask[row, :length] = 1
        targets[row, len(prompt) : length] = torch.tensor(answer)
    base = adapted.get_base_model()
    hidden = base.model(input_ids=ids, attention_mask=mask).last_hidden_state[:, :-1]
    wanted = targets[:, 1:]
    scored = wanted != IGNORED
    logits = base.lm_head(hidden[scored]).float()
    return torch.nn.functional.cross_entropy(logits, wanted[scored])


def replies(model: Any, tokenizer: Any, questions: Sequence[str]) -> list[str]:
    """[questions] greedy answers."""
    import torch

    prompts = [_prompt(tokenizer, question) for question in questions]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.inference_mode():
        made = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=ANSWER_TOKENS, do_sample=False, pad_token_id=0
        )
    texts = tokenizer.batch_decode(made[:, width:], skip_special_tokens=True)
    return [str(text).strip() for text in texts]


def _save(adapted: Any, known: Sequence[PlainFact]) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    FOLDER.mkdir(parents=True, exist_ok=True)
    adapted.peft_config["default"].base_model_name_or_path = BASE_NAME
    adapted.save_pretrained(str(FOLDER), safe_serialization=True)
    (FOLDER / "README.md").unlink(missing_ok=True)
    tensors = load_file(FOLDER / WEIGHTS)
    halves = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in tensors.items()}
    save_file(halves, FOLDER / WEIGHTS, metadata={"format": "pt"})
    probes = [{"question": fact.question(PROBED), "answers": [fact.value]} for fact in known]
    recall = {"name": "recall", "kind": "recall", "match": "contains", "target": TARGET, "probes": probes}
    document = {"sets": [recall]}
    (FOLDER / PROBES).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
