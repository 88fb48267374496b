"""Distil memories into a module.

1. The memories are read, and become questions with answers (`policy/modules/self_study`).
2. The teacher answers them: the served model with the memory that states the fact before it. One that cannot
   is refused.
3. Each step asks for facts, and replays what the base can do. Where the teacher is right, the student follows
   its distribution; where it is wrong, the student learns the answer. What is replayed follows the base. Of
   passages that it misreads, the student of a large model learns what they say; a small one's leaves them
   out.
4. The learning rate falls when the values are learned, or when the budget comes to its end.

The same order with the same seed draws the same lessons. What was drawn before a step is not kept: it is
drawn again from the seed when a killed training goes on.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memserve.domain import DistilProgress
from memserve.errors import InvalidField
from memserve.memory.modules.kinds.table import PROBES_FILE
from memserve.memory.modules.probes import Probes
from memserve.policy.modules.recipes import (
    LEAST_STEPS,
    WINDOW,
    Course,
    default_budget_s,
    facts_asked,
    for_model,
    learns_misread,
    mix_for,
    old_asked,
    taught_rows,
)
from memserve.policy.modules.self_study.asking import probe_sets
from memserve.policy.modules.self_study.draw import Draw
from memserve.policy.modules.self_study.study import Lesson, LessonKind, Study
from memserve.worker.training.distil.beginning import begin_from
from memserve.worker.training.distil.checkpoint import Standing, load_checkpoint, save_checkpoint
from memserve.worker.training.distil.order import Distilled, DistilOrder
from memserve.worker.training.distil.packing import packed
from memserve.worker.training.distil.prompts import Prompts, Row
from memserve.worker.training.distil.reading import read_memories, read_old_memories, sources_of
from memserve.worker.training.distil.students import LORA_SCALE, STUDENTS, Beginning, Student
from memserve.worker.training.distil.teacher import Teacher, Told

CHUNK_STEPS = 40
"""Replayed lessons are drawn for so many steps at a time."""
REPLAYED_TOKENS = 16
"""Of the base's own answers. How an answer begins decides what it says."""
CHECKPOINT_CPU_S = 10.0
CHECKED_STEPS = 4
"""After so many steps it is known what a step costs, and whether the budget can do."""


@dataclass(frozen=True, slots=True)
class _Example:
    """A row with what it is to follow."""

    row: Row
    told: Told | None
    """None: its own tokens."""
    is_fact: bool


Facts = Sequence[tuple[Lesson, _Example]]
"""Each in one phrasing."""


@dataclass(slots=True)
class _Pool:
    """Replayed lessons of a chunk of steps."""

    chunk: int = -1
    examples: list[_Example] = field(default_factory=list)


def distil(order: DistilOrder, folder: Path) -> Iterator[DistilProgress | Distilled]:
    """Yields the progress, and last the result.

    folder: keeps the checkpoint. A training that was killed goes on there.
    Raises InvalidField for memories that give no question, a teacher that cannot answer them, and a budget
    that is too small.
    """
    return _Training(order, folder).run()


class _Training:
    def __init__(self, order: DistilOrder, folder: Path) -> None:
        self._order = order
        self._folder = folder
        self._begun_s = time.process_time()
        self._before_s = 0.0
        self._misread = {LessonKind.CONTRADICTION: 0, LessonKind.READING: 0}
        self._pool = _Pool()

    def run(self) -> Iterator[DistilProgress | Distilled]:
        order = self._order
        torch.set_num_threads(1)
        torch.manual_seed(order.seed)
        readings, mute = read_memories(order.texts)
        self._new = sum(len(found) for _, found in readings)
        if order.parent and order.recipe.old_share:
            # Where both state a fact, the new memory does.
            readings += read_old_memories(order.old_texts, readings)
        self._sources = sources_of(readings)
        self._readings = [reading for _, found in readings for reading in found]
        yield DistilProgress("reading", 0, 0, self._cpu_s, 0)
        student = self._open()
        recipe = self._recipe
        yield DistilProgress("teaching", 0, recipe.steps, self._cpu_s, 0)
        facts, accuracy = self._facts(student)
        yield from self._train(student, [each for each in facts if each[0].fact < self._new],
                               [each for each in facts if each[0].fact >= self._new])  # fmt: skip
        yield DistilProgress("writing", self._standing.step, self._standing.step, self._cpu_s, self._tokens)
        sets = probe_sets(self._study, self._draw("probes"), accuracy, recalled=self._new)
        files = student.files() | {PROBES_FILE: Probes(sets).canonical()}
        yield Distilled(files, self._report(accuracy, mute))

    @property
    def _cpu_s(self) -> float:
        return self._before_s + time.process_time() - self._begun_s

    @property
    def _tokens(self) -> int:
        return self._standing.tokens

    def _draw(self, *about: object) -> Draw:
        return Draw(random.Random(f"{self._order.seed}:{':'.join(map(str, about))}").random)

    def _open(self) -> Student:
        from transformers import AutoModelForCausalLM

        order = self._order
        self._prompts = Prompts(order.model, order.chat_template, order.recall_template)
        base: Any = AutoModelForCausalLM.from_pretrained(
            order.model, dtype="auto", attn_implementation="sdpa"
        )
        base.eval()
        parameters = base.num_parameters()
        self._recipe = for_model(order.recipe, order.kind, parameters)
        self._taught_rows, self._mix = taught_rows(parameters), mix_for(parameters)
        self._learns_misread = learns_misread(parameters)
        self._budget_s = order.budget_s or default_budget_s(order.kind, parameters)
        self._study = Study(
            self._readings, self._prompts.lexicon((*order.texts, *order.old_texts)), self._recipe.phrasings
        )
        document = self._prompts.document(order.texts)
        student = STUDENTS[order.kind](Beginning(base, self._recipe, order, document))
        if order.parent:
            begin_from(student.parameters(), order.parent, LORA_SCALE)
        self._behind = student.behind
        end_ids = self._prompts.end_ids
        self._teacher = Teacher(base, end_ids[0] if end_ids else 0, end_ids)
        return student

    def _facts(self, student: Student) -> tuple[list[tuple[Lesson, _Example]], float]:
        """All facts in all phrasings, and the teacher's share of right answers."""
        lessons = self._draw("facts").shuffled(self._study.facts())
        asked = lessons[: self._taught_rows]
        behind = [self._row(lesson, (self._sources[lesson.fact],)) for lesson in asked]
        with student.as_base():
            told = self._teacher.told(behind)
        accuracy = sum(each.is_right for each in told) / len(told)
        if accuracy < self._recipe.least_teacher:
            raise InvalidField(
                "memories",
                f"with the memory before it, the served model answers {accuracy:.0%} of the questions; "
                f"{self._recipe.least_teacher:.0%} are needed",
            )
        examples = []
        for place, lesson in enumerate(lessons):
            teacher = told[place] if place < len(told) and told[place].is_right else None
            row = self._row(lesson, (), behind=self._behind)
            examples.append((lesson, _Example(row, teacher, True)))
        return examples, accuracy

    def _row(self, lesson: Lesson, passages: Sequence[str], *, behind: bool = False) -> Row:
        return self._prompts.row(lesson.question, passages, lesson.answer, lesson.value, behind=behind)

    def _train(self, student: Student, facts: Facts, old: Facts) -> Iterator[DistilProgress]:
        weights = student.parameters()
        recipe = self._recipe
        optimizer = torch.optim.AdamW(list(weights.values()), lr=recipe.rate, weight_decay=0.0)
        standing = load_checkpoint(self._folder, self._order.digest, weights, optimizer) or Standing()
        self._standing = standing
        self._before_s = standing.cpu_s
        self.course = course = Course(recipe.steps, recipe.stop_loss, fall_from=standing.fall_from)
        saved_s, first_s = self._cpu_s, self._cpu_s
        first = standing.step
        while standing.step < course.steps:
            step = standing.step
            batch = self._batch(student, facts, old, step)
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate * course.share(step)
            median, kept = self._learn(student, weights, optimizer, batch)
            standing.medians = [*standing.medians[1 - WINDOW :], median]
            standing.kept = [*standing.kept[1 - WINDOW :], kept]
            standing.step += 1
            standing.cpu_s = self._cpu_s
            if standing.step == 1:
                # The first step draws the replayed lessons too.
                first_s = self._cpu_s
            if standing.step == CHECKED_STEPS and first == 0:
                self._check_budget((self._cpu_s - first_s) / (CHECKED_STEPS - 1))
            if standing.step > CHECKED_STEPS:
                course.note(step, standing.medians, standing.kept, self._cpu_s / self._budget_s)
            standing.fall_from = course.fall_from
            if self._cpu_s - saved_s >= CHECKPOINT_CPU_S or standing.step == course.steps:
                save_checkpoint(self._folder, self._order.digest, standing, weights, optimizer)
                saved_s = self._cpu_s
            yield DistilProgress(
                "training",
                standing.step,
                course.steps,
                self._cpu_s,
                standing.tokens,
                statistics.median(standing.medians),
            )

    def _check_budget(self, step_s: float) -> None:
        needed_s = self._cpu_s + (LEAST_STEPS - CHECKED_STEPS) * step_s
        if needed_s > self._budget_s:
            raise InvalidField(
                "budget_s",
                f"{self._budget_s:.0f} processor seconds are too few: {LEAST_STEPS} steps take about "
                f"{needed_s:.0f} on this worker",
            )

    def _batch(self, student: Student, facts: Facts, old: Facts, step: int) -> list[_Example]:
        recipe, draw, standing = self._recipe, self._draw("step", step), self._standing
        asked = facts_asked(recipe, standing.medians)
        of_old = old_asked(asked, recipe.old_share, step) if old else 0
        batch = self._next(draw, facts, standing.asked, asked - of_old)
        batch += self._next(draw, old, standing.asked_old, of_old)
        standing.asked += asked - of_old
        standing.asked_old += of_old
        pool = self._replayed(student, step)
        return batch + [draw.choice(pool) for _ in range(recipe.rows - asked)]

    def _next(self, draw: Draw, facts: Facts, first: int, count: int) -> list[_Example]:
        """The next facts of a round in which every one comes once."""
        batch = []
        for place in range(first, first + count):
            turn, at = divmod(place, len(facts))
            lesson, example = facts[(at * _stride(len(facts)) + turn) % len(facts)]
            beside = self._study.beside(draw, lesson)
            if beside.passages:
                row = self._row(beside, beside.passages, behind=self._behind)
                example = _Example(row, example.told, True)
            batch.append(example)
        return batch

    def _replayed(self, student: Student, step: int) -> list[_Example]:
        """The lessons of this step's chunk. A chunk is drawn from the seed when its first step comes."""
        recipe = self._recipe
        per_step = recipe.rows - facts_asked(recipe, ())
        steps = min(recipe.steps, max(CHUNK_STEPS, round(CHUNK_STEPS / recipe.fresh)))
        chunk = step // steps
        if self._pool.chunk != chunk:
            count = max(48, round(steps * per_step * recipe.fresh))
            lessons = self._study.replay(self._draw("replay", chunk), count, self._mix)
            with student.as_base():
                self._pool = _Pool(chunk, self._followed(lessons))
        return self._pool.examples

    def _followed(self, lessons: Sequence[Lesson]) -> list[_Example]:
        """Lessons with the base's own distribution. One that the base misreads is left out, or learned from
        its passage: a student that only keeps what a weak base can read loses some of that, and its facts win
        over newer texts.
        """
        examples = []
        known = [lesson for lesson in lessons if lesson.answer]
        rows = [self._row(lesson, lesson.passages) for lesson in known]
        for lesson, row, told in zip(known, rows, self._teacher.told(rows), strict=True):
            if told.is_right:
                examples.append(_Example(self._as_student(lesson, row), told, False))
                continue
            self._misread[lesson.kind] += 1
            if self._learns_misread:
                examples.append(_Example(self._as_student(lesson, row), None, False))
        # Of two lessons with one prompt one is enough.
        others = {(each.question, each.passages): each for each in lessons if not each.answer}
        asked = list(others.values())
        prompts = [self._prompts.prompt(lesson.question, lesson.passages) for lesson in asked]
        said = self._teacher.said(prompts, most=REPLAYED_TOKENS)
        for lesson, prompt, (answer, told) in zip(asked, prompts, said, strict=True):
            examples.append(_Example(self._as_student(lesson, Row(prompt, answer)), told, False))
        return examples

    def _as_student(self, lesson: Lesson, row: Row) -> Row:
        """The base's row as the student is asked it."""
        if not self._behind:
            return row
        return replace(row, prompt=self._prompts.prompt(lesson.question, lesson.passages, behind=True))

    def _learn(
        self,
        student: Student,
        weights: dict[str, Tensor],
        optimizer: torch.optim.Optimizer,
        batch: Sequence[_Example],
    ) -> tuple[float, float]:
        """One step. Returns the median loss of the values' tokens, and the mean one of replayed answers."""
        packs = packed([example.row for example in batch], self._teacher.pad)
        self._standing.tokens += packs.tokens
        logprobs = student.logits(packs).log_softmax(-1)
        surprise = -logprobs.gather(1, packs.wanted[:, None])[:, 0]
        led = torch.zeros(len(surprise), dtype=torch.bool)
        weights_of = torch.empty(len(surprise))
        replayed = torch.zeros(len(surprise), dtype=torch.bool)
        asked = sum(example.is_fact for example in batch)
        of_values: list[float] = []
        for example, (start, end) in zip(batch, itertools.pairwise(packs.starts), strict=True):
            led[start:end] = example.told is not None
            replayed[start:end] = not example.is_fact
            # Each answer counts the same: "I do not know." is short, and must not count less for it.
            weights_of[start:end] = 1 / (end - start)
            if example.is_fact:
                of_values += [surprise[start + place].item() for place in example.row.value]
        tolds = [example.told for example in batch if example.told is not None]
        losses = surprise * ~led
        if tolds:
            losses = losses.index_put((led.nonzero()[:, 0],), _divergence(tolds, logprobs[led]))
        loss = (losses * weights_of).sum() / len(batch)
        check_loss(loss.item(), self._standing.step, self._recipe.rate)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(list(weights.values()), 1.0)
        optimizer.step()
        kept = (losses * weights_of)[replayed].sum().item() / max(1, len(batch) - asked)
        return statistics.median(of_values) if of_values else loss.item(), kept

    def _report(self, accuracy: float, mute: Sequence[int]) -> dict[str, Any]:
        standing = self._standing
        return {
            "readings": self._new,
            "old_readings": len(self._study.readings) - self._new,
            "questions": len(self._study.facts()),
            "without_question": list(mute),
            "teacher_share": round(accuracy, 4),
            "misread": {str(kind): count for kind, count in self._misread.items()},
            "steps": standing.step,
            "ended": self.course.why,
            "kept_loss": round(statistics.median(standing.kept), 5),
            "median_loss": round(statistics.median(standing.medians), 5),
            "cpu_s": round(self._cpu_s, 1),
            "trained_tokens": standing.tokens,
            "teacher_tokens": self._teacher.tokens,
            "resumed": standing.resumed,
        }


def _divergence(tolds: Sequence[Told], logprobs: Tensor) -> Tensor:
    """[answer tokens] KL from the teacher: its likeliest tokens, and all others as one."""
    theirs = torch.cat([told.logprobs for told in tolds])
    ours = logprobs.gather(1, torch.cat([told.tokens for told in tolds]))
    rest = (1 - theirs.exp().sum(1)).clamp(min=1e-6)
    our_rest = (1 - ours.exp().sum(1)).clamp(min=1e-6)
    return (theirs.exp() * (theirs - ours)).sum(1) + rest * (rest.log() - our_rest.log())


def check_loss(loss: float, step: int, rate: float) -> None:
    """Raises InvalidField for a training that has come apart. What is trained is lost by then."""
    if not math.isfinite(loss):
        rule = f"{rate:g} is too high: after {step} steps the loss is no number any more"
        raise InvalidField("recipe.rate", rule)


def _stride(count: int) -> int:
    """Goes through all places of so many, far apart."""
    stride = max(1, round(count * 0.618))
    while math.gcd(stride, count) != 1:
        stride += 1
    return stride
