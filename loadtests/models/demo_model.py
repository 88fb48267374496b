"""Measure the demo model and its adapters on held-out data, with transformers and peft on the CPU.

`python -m loadtests.demo_model` prints a table; `--json` adds one JSON object on the last line. Exit status 1
when a bar is missed.
"""

import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from loadtests.harness.figures import parser
from memserve.demo import MODEL_DIR, facts
from memserve.demo.adapters import AdapterFact, adapter_names, held_facts
from memserve.demo.answering import answers
from memserve.demo.facts import Case, Message, Need, Question

# What an adapter must leave of the base's abilities.
KEPT = 0.95


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured share of right answers, and the bar that it must reach (or stay under). A bar of None is
    for information.
    """

    name: str
    right: int
    asked: int
    at_least: float | None = None
    at_most: float | None = None

    @property
    def share(self) -> float:
        """Right answers divided by questions; 0 when nothing was asked."""
        return self.right / self.asked if self.asked else 0.0

    @property
    def holds(self) -> bool:
        """Whether the share is on the right side of its bar."""
        return (self.at_least is None or self.share >= self.at_least) and (
            self.at_most is None or self.share <= self.at_most
        )


@dataclass(frozen=True, slots=True)
class Subject:
    """What is being measured: the base, or the base with an adapter on it."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    label: str

    def right(self, prompts: Sequence[Sequence[Message]], expected: Sequence[str], rows: int = 32) -> int:
        """Count the answers that equal what is expected. A sample of the wrong ones goes to stderr."""
        started_s = time.monotonic()
        answered = answers(self.model, self.tokenizer, prompts, rows)
        wrong = [pair for pair in zip(answered, expected, strict=True) if pair[0] != pair[1]]
        print(
            f"{self.label}: {len(prompts)} questions, {time.monotonic() - started_s:.1f} s; wrong: "
            f"{wrong[:3]}",
            file=sys.stderr,
            flush=True,
        )
        return len(prompts) - len(wrong)


def _abilities(subject: Subject, seed: int, count: int, before: Sequence[Figure] = ()) -> list[Figure]:
    """before: the same figures of the base; an adapter must keep 95 % of each. The base's own bars are
    absolute.
    """
    bars: dict[Need, tuple[str, float]] = {
        "passage": ("answered from a passage", 0.95),
        "distractors": ("abstained among other passages", 0.90),
        "nothing": ("abstained without passages", 0.90),
    }
    figures = []
    for place, (need, (name, bar)) in enumerate(bars.items()):
        if before:
            bar = KEPT * before[place].share
        cases: list[Case] = facts.held_out_cases(seed, count, need)
        right = subject.right([case.messages for case in cases], [case.expected for case in cases])
        figures.append(Figure(f"{subject.label}: {name}", right, count, at_least=bar))
    return figures


def _handbooks(subject: Subject, seed: int, tokens: int, count: int) -> Figure:
    book = facts.handbook(seed, tokens)
    asked = facts.handbook_questions(book, seed, count)
    right = subject.right(
        [facts.prompt(book.text, [], question.text) for question in asked],
        [question.answer for question in asked],
        rows=8,
    )
    return Figure(f"{subject.label}: answered from a handbook of {tokens:,} tokens", right, count)


def _recall(subject: Subject, held: Sequence[AdapterFact], name: str, with_adapter: bool) -> Figure:
    pairs = [(text, fact.answer) for fact in held for text in fact.held_out_questions]
    right = subject.right([facts.prompt("", [], text) for text, _ in pairs], [answer for _, answer in pairs])
    bar = {"at_least": 0.90} if with_adapter else {"at_most": 0.05}
    return Figure(f"{subject.label}: knows the facts of {name}, held-out phrasings", right, len(pairs), **bar)


def _overrides(subject: Subject, name: str, seed: int) -> Figure:
    """How often a passage that contradicts the adapter's fact wins over it."""
    rng = random.Random(f"overrides-{seed}-{name}")
    prompts: list[Sequence[Message]] = []
    expected: list[str] = []
    for fact in facts.adapter_facts(name):
        for phrasing in facts.HELD_OUT_QUESTIONS:
            stated = facts.Fact(
                fact.entity,
                fact.attribute,
                facts.value(rng, facts.ATTRIBUTES[fact.entity.kind][fact.attribute]),
            )
            shown = [stated, *facts.distinct_facts(rng, "held_out", rng.randint(0, 4), without=[stated])]
            rng.shuffle(shown)
            asked: Question = facts.question(rng, stated, [phrasing])
            prompts.append(facts.prompt("", [facts.passage(rng, fact) for fact in shown], asked.text))
            expected.append(stated.answer)
    return Figure(
        f"{subject.label}: a contradicting passage wins", subject.right(prompts, expected), len(prompts)
    )


def measure(root: Path, seed: int, quick: bool) -> list[Figure]:
    """Measure everything. root: a folder with model/ and adapters/. quick: fewer questions, at most a
    minute.
    """
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    count = 200 if quick else 300
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(root / "model")
    base: PreTrainedModel = AutoModelForCausalLM.from_pretrained(root / "model")
    subject = Subject(base, tokenizer, "base")
    abilities = _abilities(subject, seed, count)
    figures = list(abilities)
    for tokens in (1000, 3500):
        figures.append(_handbooks(subject, seed, tokens, 8 if quick else 32))
    names = adapter_names(root / "adapters")
    for name in names:
        figures.append(_recall(subject, held_facts(name, root / "adapters"), name, with_adapter=False))
    for name in names:
        adapted = PeftModel.from_pretrained(base, str(root / "adapters" / name)).eval()
        loaded = Subject(adapted, tokenizer, name)
        figures.append(_recall(loaded, held_facts(name, root / "adapters"), name, with_adapter=True))
        figures += _abilities(loaded, seed, count, abilities)
        figures.append(_overrides(loaded, name, seed))
        base = adapted.unload()
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    options = parser("demo_model", __doc__)
    options.add_argument(
        "--root",
        type=Path,
        default=MODEL_DIR.parent,
        help="a folder with model/ and adapters/ (default: the package's own)",
    )
    options.add_argument("--seed", type=int, default=1, help="seed of the held-out questions (default: 1)")
    options.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="processor threads (default: all cores)"
    )
    chosen = options.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    figures = measure(chosen.root, chosen.seed, chosen.quick)
    held = all(figure.holds for figure in figures)
    width = max(len(figure.name) for figure in figures)
    for figure in figures:
        bar = (
            f">= {figure.at_least:.2f}"
            if figure.at_least is not None
            else f"<= {figure.at_most:.2f}"
            if figure.at_most is not None
            else ""
        )
        print(
            f"{figure.name:<{width}}  {figure.share:6.3f}  {figure.right:>4}/{figure.asked:<4} {bar:<8} "
            f"{'' if figure.holds else 'MISSED'}".rstrip()
        )
    print("every bar holds" if held else "a bar is missed")
    if chosen.json:
        print(
            json.dumps(
                {
                    "seed": chosen.seed,
                    "holds": held,
                    "figures": [{**asdict(figure), "share": figure.share} for figure in figures],
                }
            )
        )
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
