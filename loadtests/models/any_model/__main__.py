"""Models of many architectures and kinds of tokenizer, each by `memserve up --model`: answers, LoRA and
stored KV against transformers.

Every model is made on the spot with random weights and served by a `memserve up` of its own. The answers to
short and long questions must be transformers' tokens; with a LoRA adapter made by peft, peft's; after kill -9
of the worker, with the KV from Redis, the same again. What memserve does not serve it must refuse within 5 s,
with the reason.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.up import Up
from loadtests.models.any_model.shapes import SHAPES, Shape
from memserve.client import CallFailed, Client, wait_until_ready
from memserve.domain import Sampling

SHAPES_LEAST = 14
QUICK = ("Qwen3", "Mistral, sliding window", "GPT-2", "Falcon-H1")
REFUSED_WITHIN_S = 5.0
RESTART_TIMEOUT_S = 120.0
TOKENS = 12
SAMPLING = Sampling(max_tokens=TOKENS, min_tokens=TOKENS)
LONG_WORDS = 300
WORDS = (
    "amber",
    "lantern",
    "harbour",
    "gate",
    "tower",
    "code",
    "opens",
    "north",
    "river",
    "bridge",
    "stone",
    "winter",
)
LONG_QUESTION = " ".join(WORDS[(number * number + number // 5) % len(WORDS)] for number in range(LONG_WORDS))
QUESTIONS = ("Where is the north gate?", "Où est la clé? 日本の灯台 42", LONG_QUESTION)
NOT_TOLD = "-"
NO_LORA = "no modules of kind lora"


class Reference:
    """The model in transformers, and its answers."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self.folder = folder
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def model(self) -> Any:
        from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

        for auto in (AutoModelForCausalLM, AutoModelForImageTextToText):
            try:
                # Others leave out the cap on attention logits of Gemma 2.
                return auto.from_pretrained(
                    self.folder, dtype=torch.float32, attn_implementation="eager"
                ).eval()
            except ValueError as error:
                failure = error
        raise failure

    def answers(self, model: Any) -> list[list[int]]:
        """Greedy token ids of each question."""
        answers = []
        for question in QUESTIONS:
            inputs = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": question}],
                add_generation_prompt=True,
                tokenize=True,
                return_tensors="pt",
                return_dict=True,
            )
            with torch.no_grad():
                ids = model.generate(
                    input_ids=inputs["input_ids"],
                    attention_mask=inputs["attention_mask"],
                    max_new_tokens=TOKENS,
                    min_new_tokens=TOKENS,
                    do_sample=False,
                    pad_token_id=2,
                )
            answers.append(ids[0, inputs["input_ids"].shape[1] :].tolist())
        return answers

    def adapter(self, folder: Path, targets: Sequence[str]) -> list[list[int]]:
        """Make a LoRA of random weights with peft and save it. Returns its answers."""
        import peft

        torch.manual_seed(1)
        options = peft.LoraConfig(
            r=8, lora_alpha=16, target_modules=list(targets), task_type="CAUSAL_LM", init_lora_weights=False
        )
        model = peft.get_peft_model(self.model(), options)
        model.save_pretrained(folder)
        return self.answers(model.eval())


@dataclass
class Outcome:
    """What became of a model. Each of the three is how many answers were the reference's, of how many."""

    name: str
    base: str = NOT_TOLD
    lora: str = NOT_TOLD
    again: str = NOT_TOLD
    from_redis: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)
    note: str = ""


def ask(client: Client, module: str = "") -> tuple[list[list[int]], int]:
    """The token ids of every answer, and the tokens of the long question that came from Redis."""
    answers = [client.generate(question, module=module, sampling=SAMPLING) for question in QUESTIONS]
    return [list(answer.token_ids) for answer in answers], answers[-1].usage.cached.redis


def compared(outcome: Outcome, what: str, got: list[list[int]], want: list[list[int]]) -> str:
    equal = sum(left == right for left, right in zip(got, want, strict=True))
    if equal != len(want):
        outcome.faults.append(f"{what}: {got} where the reference has {want}")
    return f"{equal} of {len(want)}"


def served(shape: Shape, model: Path, folder: Path, outcome: Outcome) -> None:
    """Serve the model and hold it against the reference. Raises RuntimeError, CallFailed."""
    reference = Reference(model)
    up = Up(folder / "data", model, workers=1)
    try:
        want = reference.answers(reference.model())
        want_lora = reference.adapter(folder / "adapter", shape.targets) if shape.targets else []
        up.wait_until_ready()
        with Client(up.address, timeout_s=60) as client:
            outcome.base = compared(outcome, "base", ask(client)[0], want)
            module = ""
            if shape.targets:
                module = client.modules.publish("adapter", folder / "adapter").reference
                outcome.lora = compared(outcome, "LoRA", ask(client, module)[0], want_lora)
            elif NO_LORA not in client.status(workers_only=True).workers[0].limits:
                outcome.faults.append("served without LoRA, and its status does not say so")
            # What is used a second time is stored in Redis.
            ask(client)
            (worker,) = client.status(workers_only=True).workers
            os.kill(worker.pid, signal.SIGKILL)
            deadline_s = time.monotonic() + RESTART_TIMEOUT_S
            while worker.worker_id in up.ready_workers() and time.monotonic() < deadline_s:
                time.sleep(0.2)
            if not wait_until_ready(up.address, RESTART_TIMEOUT_S):
                raise RuntimeError(f"no worker came back: {up.said()}")
            got, outcome.from_redis = ask(client)
            outcome.again = compared(outcome, "after the kill", got, want)
            if module:
                compared(outcome, "LoRA after the kill", ask(client, module)[0], want_lora)
            if not outcome.from_redis:
                outcome.faults.append("nothing came from Redis after the kill")
    finally:
        up.stop()


def refused(shape: Shape, model: Path, folder: Path, outcome: Outcome) -> None:
    """The refusal must come in time and name what it must."""
    started_s = time.monotonic()
    up = Up(folder / "data", model, workers=1)
    try:
        status = up.process.wait(timeout=4 * REFUSED_WITHIN_S)
    except TimeoutError:
        status = 0
        up.stop()
    seconds = time.monotonic() - started_s
    outcome.note = f"refused in {seconds:.1f} s: {' '.join(up.said().split())[:200]}"
    if status == 0 or seconds > REFUSED_WITHIN_S or shape.refused not in up.said():
        outcome.faults.append(outcome.note)


def tried(shape: Shape, folder: Path) -> Outcome:
    outcome, started_s = Outcome(shape.name), time.monotonic()
    try:
        model = shape.write(folder / "model")
        (refused if shape.refused else served)(shape, model, folder, outcome)
    except (RuntimeError, CallFailed, OSError) as error:
        outcome.faults.append(f"{type(error).__name__}: {error}")
    outcome.seconds = time.monotonic() - started_s
    return outcome


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    options = parser("any_model", __doc__)
    options.add_argument(
        "--only", default="", help="only the models whose names contain one of these, separated by commas"
    )
    chosen = options.parse_args(arguments)
    only = [part.lower() for part in chosen.only.split(",") if part]
    shapes = [
        shape
        for shape in SHAPES
        if (
            any(part in shape.name.lower() for part in only)
            if only
            else not chosen.quick or shape.name in QUICK
        )
    ]
    warnings.filterwarnings("ignore")
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    torch.set_num_threads(1)
    outcomes = []
    for shape in shapes:
        folder = Path(tempfile.mkdtemp(prefix="memserve-any-"))
        try:
            outcome = tried(shape, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        report(
            f"{shape.name}: {'; '.join(outcome.faults) or outcome.note or 'as transformers'} "
            f"({outcome.seconds:.0f} s)"
        )
        outcomes.append(outcome)
    print_table(
        ("model", "answers", "with LoRA", "after kill -9", "tokens from Redis", "s", ""),
        [
            (
                o.name,
                o.base,
                o.lora,
                o.again,
                o.from_redis,
                f"{o.seconds:.0f}",
                "WRONG" if o.faults else o.note[:90],
            )
            for o in outcomes
        ],
    )
    wrong = {outcome.name: outcome.faults for outcome in outcomes if outcome.faults}
    bars = [
        Bar("models", len(shapes), at_least=len(QUICK) if chosen.quick else SHAPES_LEAST),
        Bar(
            "models with an answer that is not the reference's, or not refused as it must be",
            len(wrong),
            at_most=0,
        ),
    ]
    return finish(bars, {"wrong": wrong}, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
