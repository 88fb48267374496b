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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests.harness.demo_engine import DemoEngine, DemoTokenizer
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


class ExpertEngine(DemoEngine):
    """An engine that serves the demo's LoRA and, where it is to, its expert."""

    def __init__(self, *, experts: bool) -> None:
        from memserve.worker.modules.kinds.logit_expert import LIMIT, PROCESSOR, WORKER_EXTENSION

        serving: dict[str, Any] = {}
        if experts:
            serving = {
                "logits_processors": [PROCESSOR],
                "worker_extension_cls": WORKER_EXTENSION,
                "additional_config": {LIMIT: 1},
            }
        super().__init__(
            {
                "max_num_seqs": 16,
                "kv_cache_memory_bytes": 128 << 20,
                "enable_lora": True,
                "max_loras": 1,
                "max_lora_rank": 16,
                **serving,
            }
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
        inputs: Any = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self.llm.generate(inputs, params, lora_request=request, use_tqdm=False)
        return [tuple(output.outputs[0].token_ids) for output in outputs]


@dataclass(frozen=True, slots=True)
class Questions:
    """Held-out phrasings of known facts: prompts as tokens, and the right answers as text."""

    prompts: list[Tokens]
    answers: list[str]


class Asking(DemoTokenizer):
    """Questions about the facts of modules, and how many answers are right."""

    def about(self, module: Path) -> Questions:
        pairs = [
            (text, fact.answer)
            for fact in held_facts(module.name, module.parent)
            for text in fact.held_out_questions
        ]
        return Questions(
            [self.prompt(facts.prompt("", [], text)) for text, _ in pairs], [answer for _, answer in pairs]
        )

    def share(self, questions: Questions, answers: Sequence[Tokens]) -> float:
        """The share of right answers."""
        texts = [self.text(token_ids) for token_ids in answers]
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
    answers = []
    with torch.inference_mode():
        for prompt in prompts:
            row = list(prompt)
            while len(row) < len(prompt) + tokens:
                logits, shifted = (
                    model(torch.tensor([row]), use_cache=False).logits[0, -1] for model in (base, expert)
                )
                row.append(int((logits + alpha * (shifted - logits)).argmax()))
            answers.append(tuple(row[len(prompt) :]))
    return answers


def differing(ours: Sequence[Tokens], theirs: Sequence[Tokens]) -> int:
    """Answers that are not the same."""
    return sum(mine != other for mine, other in zip(ours, theirs, strict=True))


def cost(
    engine: ExpertEngine, plain: ExpertEngine, prompts: Sequence[Tokens], rounds: int
) -> tuple[float, float, float]:
    """Alternating, medians of the rounds: with the expert ÷ base, without it in the same engine ÷ base, and
    the base's ms per step.
    """

    def seconds(which: ExpertEngine, alpha: float) -> float:
        started_s = time.perf_counter()
        which.ask(prompts, [alpha] * len(prompts), tokens=TIMED_TOKENS, to_the_end=False)
        return time.perf_counter() - started_s

    ons, offs, steps_s = [], [], []
    for number in range(rounds):
        # The order turns, so that neither always runs right after the other.
        if number % 2:
            off_s, base_s, on_s = seconds(engine, 0.0), seconds(plain, 0.0), seconds(engine, 1.0)
        else:
            on_s, base_s, off_s = seconds(engine, 1.0), seconds(plain, 0.0), seconds(engine, 0.0)
        ons.append(on_s / base_s)
        offs.append(off_s / base_s)
        steps_s.append(base_s / TIMED_TOKENS)
    return statistics.median(ons), statistics.median(offs), 1000 * statistics.median(steps_s)


@dataclass(frozen=True, slots=True)
class Facts:
    """What the engine knows in each way that it can serve, and what does not agree."""

    rows: list[tuple[str, float, float]]
    """What is served, and the shares of the expert's and of the LoRA's facts that are answered right."""
    without_expert: int
    """Answers without the expert that were compared with an engine that has no experts."""
    without_expert_differing: int
    batched: int
    """Answers with the expert that were compared with the same prompt asked alone."""
    batched_differing: int


def measure_facts(engine: ExpertEngine, plain: ExpertEngine, asking: Asking, others: list[Tokens]) -> Facts:
    """others: prompts that are about no module's facts."""
    own, lora = asking.about(EXPERT), asking.about(LORA)
    prompts = [*own.prompts, *lora.prompts, *others]
    rows: list[tuple[str, float, float]] = []
    answers: dict[tuple[float, bool], list[Tokens]] = {}
    first, second = len(own.prompts), len(own.prompts) + len(lora.prompts)
    for alpha, with_lora in ((0.0, False), (0.5, False), (1.0, False), (0.0, True), (1.0, True)):
        served = engine.ask(prompts, [alpha] * len(prompts), lora=with_lora)
        answers[alpha, with_lora] = served
        label = f"{'harbour' if with_lora else 'base'}{f' + {alpha:g} × archive' if alpha else ''}"
        rows.append((label, asking.share(own, served[:first]), asking.share(lora, served[first:second])))
    base = plain.ask(prompts, [0.0] * len(prompts))
    mixed = engine.ask(prompts, [float(place % 2) for place in range(len(prompts))])
    report("one by one")
    alone = [engine.ask([prompt], [1.0])[0] for prompt in prompts[1::2]]
    return Facts(
        rows,
        len(base) + len(base[::2]),
        differing(base, answers[0.0, False]) + differing(base[::2], mixed[::2]),
        2 * len(alone),
        differing(alone, answers[1.0, False][1::2]) + differing(alone, mixed[1::2]),
    )


def wrong_tokens(engine: ExpertEngine, prompts: Sequence[Tokens]) -> int:
    """Tokens of answers with the expert that are not the reference's."""
    ours = engine.ask(prompts, [1.0] * len(prompts), tokens=ANSWER_TOKENS, to_the_end=False)
    theirs = reference(prompts, 1.0, ANSWER_TOKENS)
    return sum(
        mine != other for pair in zip(ours, theirs, strict=True) for mine, other in zip(*pair, strict=True)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    chosen = parser("logit_expert", __doc__).parse_args(arguments)
    prepare_environment()
    weights = MODEL_DIR / "model.safetensors"
    before = digest_of(weights)
    asking = Asking()
    own, lora = asking.about(EXPERT).prompts, asking.about(LORA).prompts
    others = asking.other_prompts(16 if chosen.quick else 64)
    report("starting two engines")
    plain, engine = ExpertEngine(experts=False), ExpertEngine(experts=True)
    try:
        engine.load("ab" * 32)
        report("facts")
        known = measure_facts(engine, plain, asking, others)
        report("reference")
        compared = [*own[::12], *others[:4]]
        wrong = wrong_tokens(engine, compared)
        report("cost")
        prompts = [*own, *lora, *others]
        costs = {size: cost(engine, plain, prompts[:size], 6 if chosen.quick else 24) for size in BATCHES}
    finally:
        engine.close()
        plain.close()
    bars = [
        *bars_of_facts(known),
        Bar(
            f"of {ANSWER_TOKENS * len(compared)} tokens, those that differ from transformers without a cache",
            wrong,
            at_most=0,
        ),
        Bar("changed files of base weights", int(digest_of(weights) != before), at_most=0),
    ]
    return show_results(known, costs, bars, chosen.json)


def bars_of_facts(known: Facts) -> list[Bar]:
    shares = {label: archive for label, archive, _ in known.rows}
    return [
        Bar("the expert's facts, with it at alpha 1", shares["base + 1 × archive"], at_least=0.8),
        Bar("the expert's facts, without it", shares["base"], at_most=0.05),
        Bar(
            f"of {known.without_expert} answers without it, those that differ from an engine "
            "that has no experts",
            known.without_expert_differing,
            at_most=0,
        ),
        Bar(
            f"of {known.batched} answers in a batch with it, those that differ from one by one",
            known.batched_differing,
            at_most=0,
        ),
    ]


def show_results(
    known: Facts, costs: Mapping[int, tuple[float, float, float]], bars: Sequence[Bar], as_json: bool
) -> int:
    """The tables and the bars. costs: by size of the batch, as of `cost`. Returns the exit status."""
    print_table(
        ("served", "archive's facts", "harbour's facts"),
        [(label, f"{archive:.3f}", f"{harbour:.3f}") for label, archive, harbour in known.rows],
    )
    print()
    print_table(
        ("batch", "with ÷ base", "without ÷ base", "base, ms a step"),
        [(size, f"{on:.2f}", f"{off:.2f}", f"{step_ms:.2f}") for size, (on, off, step_ms) in costs.items()],
    )
    print()
    figures: dict[str, object] = {
        "shares": {label: {"archive": archive, "harbour": harbour} for label, archive, harbour in known.rows},
        "cost": {
            str(size): {"with": on, "without": off, "base_step_ms": step_ms}
            for size, (on, off, step_ms) in costs.items()
        },
    }
    return finish(bars, figures, as_json)


if __name__ == "__main__":
    sys.exit(main())
