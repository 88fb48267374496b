"""Questions with expected answers, as prompts of the demo model."""

from __future__ import annotations

from dataclasses import dataclass

from loadtests.harness.demo_engine import CHUNK_TOKENS, DemoTokenizer
from memserve.demo import facts

HANDBOOK_TOKENS, QUESTIONS_PER_BOOK = 1000, 10


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question with its expected answer, and the task that it belongs to."""

    token_ids: tuple[int, ...]
    expected: str
    task: str


def draw_prompts(count: int, seed: int) -> list[Prompt]:
    """Half of them ask about a handbook, half about a few passages; all have a full chunk at least."""
    tokens = DemoTokenizer().prompt
    prompts: list[Prompt] = []
    for number in range(-(-count // 2 // QUESTIONS_PER_BOOK)):
        book = facts.handbook(seed * 1000 + number, HANDBOOK_TOKENS)
        for question in facts.handbook_questions(book, seed, QUESTIONS_PER_BOOK):
            prompts.append(
                Prompt(tokens(facts.prompt(book.text, [], question.text)), question.answer, "handbook")
            )
    prompts = prompts[: count // 2]
    for case in facts.held_out_cases(seed, 20 * count, "passage"):
        token_ids = tokens(case.messages)
        if len(prompts) < count and len(token_ids) > CHUNK_TOKENS:
            prompts.append(Prompt(token_ids, case.expected, "passages"))
    return prompts
