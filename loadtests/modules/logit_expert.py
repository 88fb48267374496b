"""Measure the demo's logit expert in real vLLM engines: what it knows, what it leaves alone, what it costs.

`python -m loadtests.logit_expert` prints a table; `--json` adds one JSON object on the last line. Exit status
1 when a bar is missed. Two engines run side by side: one that can serve experts, and one without any such
thing, which is the base.
"""

from __future__ import annotations

import hashlib
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests.harness.engines import prepare_environment
from loadtests.harness.figures import Bar, finish, parser, print_table, report
from memserve.demo import ADAPTERS_DIR, EXPERTS_DIR, MODEL_DIR, facts
from memserve.demo.adapters import held_facts

EXPERT = EXPERTS_DIR / "archive"
LORA = ADAPTERS_DIR / "harbour"
ANSWER_TOKENS = 24
TIMED_TOKENS = 64
BATCHES = (1, 8)
Tokens = tuple[int, ...]


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Engine:
    """A vLLM engine on the demo model. `prepare_environment` comes first."""

    def __init__(self, *, experts: bool) -> None:
        from vllm import LLM

        from memserve.worker.engine.cpu import CpuExecutor
        from memserve.worker.modules.kinds.logit_expert import LIMIT, PROCESSOR, WORKER_EXTENSION

        serving: dict[str, Any] = {}
        if experts:
            serving = {
                "logits_processors": [PROCESSOR],
                "worker_extension_cls": WORKER_EXTENSION,
                "additional_config": {LIMIT: 1},
            }
        self.llm = LLM(
            model=str(MODEL_DIR),
            dtype="float32",
            max_model_len=2048,
            max_num_seqs=16,
            block_size=32,
            kv_cache_memory_bytes=128 << 20,
            enforce_eager=True,
            enable_lora=True,
            max_loras=1,
            max_lora_rank=16,
            disable_log_stats=True,
            distributed_executor_backend=CpuExecutor,
            **serving,
        )

    def load(self, digest: str) -> None:
        while None in (answers := self.llm.collective_rpc("load_expert", args=(digest, str(EXPERT)))):
            time.sleep(0.01)
        if any(answers):
            raise SystemExit(f"the engine refuses the expert: {answers}")

    def ask(
        self,
        prompts: Sequence[Tokens],
        alphas: Sequence[float],
        *,
        lora: bool = False,
        tokens: int = ANSWER_TOKENS,
        to_the_end: bool = True,
    ) -> list[Tokens]:
        """Continue all prompts in one batch, greedily. alphas: of each prompt, 0 for no expert. to_the_end:
        stop where the answer ends.
        """
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        from memserve.worker.modules.kinds.logit_expert import expert_parameters

        params = [
            SamplingParams(
                temperature=0,
                max_tokens=tokens,
                ignore_eos=not to_the_end,
                detokenize=False,
                extra_args=expert_parameters("ab" * 32, alpha, str(EXPERT)) if alpha else None,
            )
            for alpha in alphas
        ]
        request = LoRARequest("harbour", 1, str(LORA)) if lora else None
        given: Any = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self.llm.generate(given, params, lora_request=request, use_tqdm=False)
        return [tuple(output.outputs[0].token_ids) for output in outputs]

    def close(self) -> None:
        self.llm.llm_engine.engine_core.shutdown()


@dataclass(frozen=True, slots=True)
class Questions:
    """Held-out phrasings of known facts: prompts as tokens, and the right answers as text."""

    prompts: list[Tokens]
    answers: list[str]


class Asking:
    """The demo tokenizer's side of it."""

    def __init__(self) -> None:
        from transformers import PreTrainedTokenizerFast

        self._tokenizer = PreTrainedTokenizerFast.from_pretrained(MODEL_DIR)

    def prompt(self, messages: Sequence[facts.Message]) -> Tokens:
        turns = [each.as_dict() for each in messages]
        text = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def about(self, module: Path) -> Questions:
        pairs = [
            (text, one.answer)
            for one in held_facts(module.name, module.parent)
            for text in one.held_out_questions
        ]
        return Questions(
            [self.prompt(facts.prompt("", [], text)) for text, _ in pairs], [answer for _, answer in pairs]
        )

    def share(self, questions: Questions, found: Sequence[Tokens]) -> float:
        """The share of right answers."""
        texts = [self._tokenizer.decode(list(each), skip_special_tokens=True).strip() for each in found]
        right = [text == answer for text, answer in zip(texts, questions.answers, strict=True)]
        return right.count(True) / len(right)

    def other_prompts(self, count: int) -> list[Tokens]:
        """Questions with passages that the base answers by reading them."""
        return [self.prompt(case.messages) for case in facts.held_out_cases(1, count, "passage")]


def reference(prompts: Sequence[Tokens], alpha: float, tokens: int) -> list[Tokens]:
    """base + alpha * (expert - base), by transformers, all tokens computed anew at every step."""
    import torch
    from transformers import LlamaForCausalLM

    base = LlamaForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    expert = LlamaForCausalLM.from_pretrained(EXPERT, dtype=torch.float32)
    found = []
    with torch.inference_mode():
        for prompt in prompts:
            row = list(prompt)
            while len(row) < len(prompt) + tokens:
                logits, shifted = (
                    model(torch.tensor([row]), use_cache=False).logits[0, -1] for model in (base, expert)
                )
                row.append(int((logits + alpha * (shifted - logits)).argmax()))
            found.append(tuple(row[len(prompt) :]))
    return found


def differing(ours: Sequence[Tokens], theirs: Sequence[Tokens]) -> int:
    """Answers that are not the same."""
    return sum(mine != other for mine, other in zip(ours, theirs, strict=True))


def cost(engine: Engine, plain: Engine, prompts: Sequence[Tokens], rounds: int) -> tuple[float, float, float]:
    """Alternating, medians of the rounds: with the expert ÷ base, without it in the same engine ÷ base, and
    the base's ms per step.
    """

    def seconds(which: Engine, alpha: float) -> float:
        started_s = time.perf_counter()
        which.ask(prompts, [alpha] * len(prompts), tokens=TIMED_TOKENS, to_the_end=False)
        return time.perf_counter() - started_s

    ons, offs, steps_s = [], [], []
    for number in range(rounds):
        # Neither is always the one that runs right after the other.
        if number % 2:
            off_s, base_s, on_s = seconds(engine, 0.0), seconds(plain, 0.0), seconds(engine, 1.0)
        else:
            on_s, base_s, off_s = seconds(engine, 1.0), seconds(plain, 0.0), seconds(engine, 0.0)
        ons.append(on_s / base_s)
        offs.append(off_s / base_s)
        steps_s.append(base_s / TIMED_TOKENS)
    return statistics.median(ons), statistics.median(offs), 1000 * statistics.median(steps_s)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    chosen = parser("logit_expert", __doc__).parse_args(arguments)
    prepare_environment()
    weights = MODEL_DIR / "model.safetensors"
    before = digest_of(weights)
    asking = Asking()
    own, lora = asking.about(EXPERT), asking.about(LORA)
    others = asking.other_prompts(16 if chosen.quick else 64)
    report("starting two engines")
    plain, engine = Engine(experts=False), Engine(experts=True)
    try:
        engine.load("ab" * 32)
        report("facts")
        everything = [*own.prompts, *lora.prompts, *others]
        rows: list[tuple[str, float, float]] = []
        by_alpha: dict[tuple[float, bool], list[Tokens]] = {}
        for alpha, with_lora in ((0.0, False), (0.5, False), (1.0, False), (0.0, True), (1.0, True)):
            found = engine.ask(everything, [alpha] * len(everything), lora=with_lora)
            by_alpha[alpha, with_lora] = found
            first, second = len(own.prompts), len(own.prompts) + len(lora.prompts)
            label = f"{'harbour' if with_lora else 'base'}{f' + {alpha:g} × archive' if alpha else ''}"
            rows.append((label, asking.share(own, found[:first]), asking.share(lora, found[first:second])))
        base = plain.ask(everything, [0.0] * len(everything))
        mixed = [float(place % 2) for place in range(len(everything))]
        beside = engine.ask(everything, mixed)
        off = differing(base, by_alpha[0.0, False]) + differing(base[::2], beside[::2])
        report("one by one")
        alone = [engine.ask([prompt], [1.0])[0] for prompt in everything[1::2]]
        batched = differing(alone, by_alpha[1.0, False][1::2]) + differing(alone, beside[1::2])
        report("reference")
        some = [*own.prompts[::12], *others[:4]]
        ours = engine.ask(some, [1.0] * len(some), tokens=ANSWER_TOKENS, to_the_end=False)
        theirs = reference(some, 1.0, ANSWER_TOKENS)
        wrong = sum(
            mine != other
            for pair in zip(ours, theirs, strict=True)
            for mine, other in zip(*pair, strict=True)
        )
        report("cost")
        costs = {size: cost(engine, plain, everything[:size], 6 if chosen.quick else 24) for size in BATCHES}
    finally:
        engine.close()
        plain.close()
    print_table(
        ("served", "archive's facts", "harbour's facts"),
        [(label, f"{a:.3f}", f"{b:.3f}") for label, a, b in rows],
    )
    print()
    print_table(
        ("batch", "with ÷ base", "without ÷ base", "base, ms a step"),
        [(size, f"{on:.2f}", f"{off_:.2f}", f"{step_ms:.2f}") for size, (on, off_, step_ms) in costs.items()],
    )
    print()
    shares = {label: {"archive": a, "harbour": b} for label, a, b in rows}
    bars = [
        Bar("the expert's facts, with it at alpha 1", shares["base + 1 × archive"]["archive"], at_least=0.8),
        Bar("the expert's facts, without it", shares["base"]["archive"], at_most=0.05),
        Bar(
            f"of {len(base) + len(base[::2])} answers without it, those that differ from an engine "
            "that has no experts",
            off,
            at_most=0,
        ),
        Bar(
            f"of {2 * len(alone)} answers in a batch with it, those that differ from one by one",
            batched,
            at_most=0,
        ),
        Bar(
            f"of {ANSWER_TOKENS * len(some)} tokens, those that differ from transformers without a cache",
            wrong,
            at_most=0,
        ),
        Bar("changed files of base weights", int(digest_of(weights) != before), at_most=0),
    ]
    figures: dict[str, object] = {
        "shares": shares,
        "cost": {
            str(size): {"with": on, "without": off_, "base_step_ms": step_ms}
            for size, (on, off_, step_ms) in costs.items()
        },
    }
    return finish(bars, figures, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
