"""How often a model answers right from recalled passages, by how they are put into the prompt.

SmolLM2-135M-Instruct is asked 40 questions, each with its own memory and three others among the passages:
with bare numbered lines, with the demo model's template, and with the default template. The demo model is
asked questions of its own world with bare lines and with its own template, and the texts of its prompts are
compared with those that it was measured with. Both models run in transformers, greedily. A small model is
made from a wheel (`loadtests.harness.real_models`).

A reply is right when it has the answer of its memory, and of none of the others.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.real_models import smollm2
from loadtests.models.recall_prompt.questions import NOTES, Case, cases
from memserve.demo import MODEL_DIR, facts
from memserve.domain import Memory, Message, Role, ScoredMemory
from memserve.gateway.layout import PromptLayout
from memserve.gateway.tokenizer import ChatTokenizer
from memserve.model.files import open_model
from memserve.model.recall_template import DEFAULT_FILE, RECALL_TEMPLATE_FILE, RecallTemplate

BARE, DEMO, DEFAULT = "bare numbered lines", "the demo model's template", "the default template"
BARE_LINES = (
    "{% if system %}\n{{ system }}\n{% endif %}\n"
    "{% for passage in passages %}\n[{{ passage.number }}] {{ passage.text }}\n{% endfor %}\n"
)
OTHERS = 3
DRAWS, QUICK_DRAWS = 4, 1
ANSWER_TOKENS, DEMO_ANSWER_TOKENS = 18, 16
DEMO_CASES, QUICK_DEMO_CASES = 100, 40
DEMO_RIGHT_LEAST = 0.95
ROWS = 20


@dataclass(frozen=True, slots=True)
class Served:
    """A model as a gateway would prompt it, in transformers."""

    model: Any
    decoder: Any
    """transformers' tokenizer."""
    tokenizer: ChatTokenizer
    context_tokens: int

    def layout(self, source: str, name: str) -> PromptLayout:
        return PromptLayout(self.tokenizer, RecallTemplate(source, name, "setting"), self.context_tokens)

    def replies(self, prompts: Sequence[list[int]], new_tokens: int) -> list[str]:
        """[prompts] greedy answers, without white space around them."""
        import torch

        replies = []
        for start in range(0, len(prompts), ROWS):
            rows = prompts[start : start + ROWS]
            width = max(map(len, rows))
            padded = [[0] * (width - len(row)) + row for row in rows]
            mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
            with torch.inference_mode():
                answered = self.model.generate(
                    input_ids=torch.tensor(padded),
                    attention_mask=torch.tensor(mask),
                    max_new_tokens=new_tokens,
                    do_sample=False,
                    pad_token_id=0,
                )
            texts = self.decoder.batch_decode(answered[:, width:], skip_special_tokens=True)
            replies += [str(text).strip() for text in texts]
        return replies


def served(folder: Path) -> Served:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    files = open_model(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    decoder = AutoTokenizer.from_pretrained(folder)
    return Served(model, decoder, ChatTokenizer(files), files.max_context_tokens)


def as_recalled(text: str) -> ScoredMemory:
    return ScoredMemory(Memory(text, "notes", text, "", (), 0.0), 1.0, None, None)


def prompt(layout: PromptLayout, passages: Sequence[str], question: str) -> list[int]:
    asked = [Message(Role.USER, question)]
    return layout.encode(layout.arrange(asked, list(map(as_recalled, passages))))


def ask_notes(model: Served, layout: PromptLayout, asked: Sequence[Case], verbose: bool) -> int:
    """How many of the questions are answered right."""
    prompts = [prompt(layout, [note.text for note in case.passages], case.note.question) for case in asked]
    replies = model.replies(prompts, ANSWER_TOKENS)
    for case, reply in zip(asked, replies, strict=True):
        if verbose and not case.is_right(reply):
            report(f"  {case.note.question} {case.note.answer}: {reply!r}")
    return sum(case.is_right(reply) for case, reply in zip(asked, replies, strict=True))


def ask_demo(model: Served, layout: PromptLayout, count: int) -> tuple[int, int]:
    """How many questions of its world the demo model answers right, and how many of its prompts are others
    than before templates: the instruction, then the numbered lines.
    """
    line = "Answer the question with the help of the numbered passages."
    other = 0
    held_out = facts.held_out_cases(0, count, "passage")
    prompts = []
    for case in held_out:
        *system, question = case.messages
        passages = [text.partition("] ")[2] for text in system[0].content.splitlines() if text[0] == "["]
        texts = [text for text in system[0].content.splitlines() if text[0] != "["]
        asked = [Message(Role.SYSTEM, "\n".join(texts))] if texts else []
        asked.append(Message(Role.USER, question.content))
        prompts.append(layout.encode(layout.arrange(asked, list(map(as_recalled, passages)))))
        numbered = [f"[{number}] {text}" for number, text in enumerate(passages, start=1)]
        before = Message(Role.SYSTEM, "\n".join([*texts, line, *numbered]))
        other += prompts[-1] != model.tokenizer.encode([before, asked[-1]])
    replies = model.replies(prompts, DEMO_ANSWER_TOKENS)
    right = sum(reply == case.expected for reply, case in zip(replies, held_out, strict=True))
    return right, other


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    options = parser("recall_prompt", __doc__)
    options.add_argument("--wrong", action="store_true", help="print the wrong replies, to stderr")
    chosen = options.parse_args(arguments)
    own = (MODEL_DIR / RECALL_TEMPLATE_FILE).read_text(encoding="utf-8")
    sources = {BARE: BARE_LINES, DEMO: own, DEFAULT: DEFAULT_FILE.read_text(encoding="utf-8")}
    draws = QUICK_DRAWS if chosen.quick else DRAWS
    asked = [case for seed in range(draws) for case in cases(len(NOTES), OTHERS, seed)]
    report("SmolLM2-135M-Instruct")
    general = served(smollm2())
    right = {}
    for name, source in sources.items():
        report(name)
        right[name] = ask_notes(general, general.layout(source, name), asked, chosen.wrong)
    report("the demo model")
    demo, count = served(MODEL_DIR), QUICK_DEMO_CASES if chosen.quick else DEMO_CASES
    demo_right = {name: ask_demo(demo, demo.layout(sources[name], name), count) for name in (BARE, DEMO)}
    print_table(
        ("passages put into the prompt by", "SmolLM2-135M-Instruct", "demo model"),
        [
            (
                name,
                f"{right[name]} of {len(asked)}",
                f"{demo_right[name][0]} of {count}" if name in demo_right else "",
            )
            for name in sources
        ],
    )
    bars = [
        Bar("right with the default template − with bare lines", right[DEFAULT] - right[BARE], at_least=0),
        Bar(
            "demo model, right with its own template", demo_right[DEMO][0] / count, at_least=DEMO_RIGHT_LEAST
        ),
        Bar("demo model, prompts other than before templates", demo_right[DEMO][1], at_most=0),
    ]
    return finish(bars, {"right": right, "asked": len(asked)}, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
