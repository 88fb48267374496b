"""What is asked: documents, their cartridges, questions, and the tokens that transformers answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loadtests.harness.cartridges import Kv, Reference, write_cartridge
from loadtests.harness.demo_engine import DemoTokenizer
from memserve.demo import ADAPTERS_DIR, facts
from memserve.domain import Message, Role

DOCUMENT_TOKENS = 330
PREFIX_TOKENS = 128
ANSWER_TOKENS = 16
ADAPTER = "harbour"
SHORT_OF_EACH = 4
# Answers of which the model is less sure are left out: another order of the same sums may change them.
LEAST_LEAD = 0.01
CARTRIDGES = ("north", "south", "west")


@dataclass(frozen=True, slots=True)
class Question:
    """A question with the tokens that answer it."""

    text: str
    cartridge: str
    """Empty: none."""
    adapter: bool
    right: tuple[int, ...]

    @property
    def messages(self) -> tuple[Message, ...]:
        return (Message(Role.USER, self.text),)


class World:
    """Three documents and their cartridges, which are the documents' own KV, and not trained."""

    def __init__(self, seed: int, questions: int) -> None:
        """questions: of each cartridge, as many with an adapter, and of the base with and without it."""
        self._tokenizer = DemoTokenizer()
        self._base, self._adapted = Reference(), Reference(adapter=ADAPTERS_DIR / ADAPTER)
        self.documents = {
            name: facts.handbook(seed + number, DOCUMENT_TOKENS) for number, name in enumerate(CARTRIDGES)
        }
        self.kvs: dict[str, Kv] = {
            name: self._base.kv(self._turns([facts.Message("system", book.text)])[:PREFIX_TOKENS])
            for name, book in self.documents.items()
        }
        rng = random.Random(seed)
        self.short_texts = [
            asked.text
            for book in self.documents.values()
            for asked in facts.handbook_questions(book, seed, SHORT_OF_EACH)
        ]
        self.questions: list[Question] = []
        for cartridge in ("", *CARTRIDGES):
            for adapter in (False, True):
                self.questions += self._drawn(rng, cartridge, adapter, questions)

    def write(self, folder: Path) -> dict[str, Path]:
        """The cartridges' folders, by name."""
        return {name: write_cartridge(folder / name, kv) for name, kv in self.kvs.items()}

    def variant(self, folder: Path, number: int) -> Path:
        """A cartridge that nothing has seen yet."""
        noise = np.random.default_rng(number).normal(scale=1e-3, size=self.kvs["north"].shape)
        return write_cartridge(folder / f"variant-{number}", self.kvs["north"] + noise.astype(np.float32))

    def _drawn(self, rng: random.Random, cartridge: str, adapter: bool, count: int) -> list[Question]:
        drawn: list[Question] = []
        kv = self.kvs[cartridge] if cartridge else None
        reference = self._adapted if adapter else self._base
        while len(drawn) < count:
            book = self.documents[rng.choice(CARTRIDGES)]
            (asked,) = facts.handbook_questions(book, rng.randrange(1 << 30), 1)
            text = asked.text
            if rng.random() < 0.4:  # long enough for Redis
                text = f"{facts.handbook(rng.randrange(1 << 30), rng.choice((150, 300))).text} {text}"
            turn = self._turns([facts.Message("user", text)], answer=True)
            turn = turn[1:] if cartridge else turn
            steps = reference.steps(kv, turn, ANSWER_TOKENS, to_the_end=True)
            if min(lead for _, lead in steps) >= LEAST_LEAD:
                drawn.append(Question(text, cartridge, adapter, tuple(token for token, _ in steps)))
        return drawn

    def _turns(self, messages: Sequence[facts.Message], *, answer: bool = False) -> list[int]:
        tokens = self._tokenizer.prompt(messages)
        return list(tokens if answer else tokens[:-1])  # the last one begins the answer
