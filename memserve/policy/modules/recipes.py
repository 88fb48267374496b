"""How a module is distilled: the recipe's numbers, what suits a model of a size, and when training ends."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

from memserve.domain import ModuleKind, Recipe
from memserve.errors import InvalidField
from memserve.policy.modules.self_study.study import Mix

SMALL_MODEL_PARAMETERS = 20_000_000
MAX_STEPS, MAX_ROWS, MAX_RANK = 5000, 64, 128
SEED_MAX = 2**53
"""JSON has no larger whole number."""
MAX_PHRASINGS, MAX_TOKENS = 64, 4096
LEAST_BUDGET_S, MAX_BUDGET_S = 5.0, 24 * 3600.0
LEAST_STEPS = 20
"""With fewer steps nothing is learned that a gate would pass."""
FALL_SHARE = 0.3
"""The part of all steps in which the learning rate falls to nothing."""
WARM_STEPS = 8
WINDOW = 8
"""Steps that the stop rule looks at."""
CARTRIDGE_RATE = 5e-2
"""On the KV itself."""
LEAST_CARTRIDGE_TOKENS, CARTRIDGE_SHARE = 128, 0.33
"""A cartridge of a smaller share of its text keeps less of it."""
NEARLY_LEARNED = 0.1
"""The median loss of the values' tokens, in nats."""
LEARNED_SHARE = 0.6
"""Of the facts that are asked before that."""


def check_recipe(recipe: Recipe) -> None:
    """Raises InvalidField, which names the field and its rule."""
    _between("recipe.steps", recipe.steps, 0, MAX_STEPS)
    if recipe.steps:
        _between("recipe.steps", recipe.steps, LEAST_STEPS, MAX_STEPS)
    _between("recipe.rows", recipe.rows, 0, MAX_ROWS)
    _between("recipe.rank", recipe.rank, 1, MAX_RANK)
    _between("recipe.rate", recipe.rate, 0.0, 0.5)
    if recipe.fact_share:
        _between("recipe.fact_share", recipe.fact_share, 0.1, 0.9)
    _between("recipe.fresh", recipe.fresh, 0.0, 1.0)
    _between("recipe.stop_loss", recipe.stop_loss, 0.0, 5.0)
    _between("recipe.least_teacher", recipe.least_teacher, 0.0, 1.0)
    _between("recipe.phrasings", recipe.phrasings, 0, MAX_PHRASINGS)
    _between("recipe.tokens", recipe.tokens, 0, MAX_TOKENS)
    _between("recipe.old_share", recipe.old_share, 0.0, 0.9)


def check_budget(budget_s: float) -> None:
    """Raises InvalidField. budget_s: processor seconds; 0 for the default."""
    if budget_s:
        _between("budget_s", budget_s, LEAST_BUDGET_S, MAX_BUDGET_S)


def _between(field: str, number: float, least: float, most: float) -> None:
    if not math.isfinite(number) or not least <= number <= most:
        raise InvalidField(field, f"must be from {least:g} to {most:g}, not {number:g}")


def for_model(recipe: Recipe, kind: ModuleKind, parameters: int) -> Recipe:
    """The recipe with a number for everything but the tokens of a cartridge."""
    small = parameters <= SMALL_MODEL_PARAMETERS
    cartridge = kind == ModuleKind.CARTRIDGE
    return replace(
        recipe,
        steps=recipe.steps or (400 if small else 120),
        rows=recipe.rows or (32 if small else 12),
        fact_share=recipe.fact_share or 0.5,
        fresh=recipe.fresh or (0.5 if small else 0.4),
        rate=recipe.rate or (CARTRIDGE_RATE if cartridge else 3e-3 if small else 2e-3),
        phrasings=recipe.phrasings or MAX_PHRASINGS,
    )


def cartridge_tokens(asked: int, text_tokens: int, block_tokens: int, context_tokens: int) -> int:
    """Positions of a cartridge: whole blocks, at least one.

    asked: the recipe's; 0 for what suits the text. text_tokens: of the memories as a prompt.
    Raises InvalidField for what is no multiple of the block, and for more than half of the context.
    """
    most = context_tokens // 2 // block_tokens * block_tokens
    if asked % block_tokens or asked > most:
        raise InvalidField(
            "recipe.tokens", f"must be a multiple of {block_tokens} and at most {most}, not {asked}"
        )
    suits = max(LEAST_CARTRIDGE_TOKENS, math.ceil(CARTRIDGE_SHARE * text_tokens))
    wanted = asked or -(-suits // block_tokens) * block_tokens
    return max(block_tokens, min(wanted, most, text_tokens // block_tokens * block_tokens))


def mix_for(parameters: int) -> Mix:
    """What is replayed. A large model knows more that it can lose, and passages cost it more."""
    if parameters <= SMALL_MODEL_PARAMETERS:
        return Mix()
    return Mix(contradiction=0.2, reading=0.05, unknown=0.5, general=0.25, beside=0.1)


def learns_misread(parameters: int) -> bool:
    """Whether a passage that the base misreads is learned, and not left out.

    A small model misreads what it cannot copy, and loses more of its abstentions than it gains.
    """
    return parameters > SMALL_MODEL_PARAMETERS


def taught_rows(parameters: int) -> int:
    """Questions for facts that the teacher is asked, at most. The others are learned from their answers."""
    return 512 if parameters <= SMALL_MODEL_PARAMETERS else 48


def facts_asked(recipe: Recipe, medians: Sequence[float]) -> int:
    """How many questions of a step ask for the memories.

    recipe: with a number for everything. medians: as of `Course.note`.
    """
    nearly = len(medians) >= WINDOW and statistics.median(medians[-WINDOW:]) < NEARLY_LEARNED
    share = LEARNED_SHARE * recipe.fact_share if nearly else recipe.fact_share
    return max(1, round(recipe.rows * share))


def old_asked(asked: int, share: float, step: int) -> int:
    """How many of a step's questions ask for what a parent was made of. Both old and new facts come.

    share: the recipe's `old_share`. Of a single question, old ones have so many of the steps.
    """
    if asked < 2 or not share:
        return math.floor((step + 1) * share) - math.floor(step * share) if asked else 0
    return max(1, min(asked - 1, round(asked * share)))


def default_budget_s(kind: ModuleKind, parameters: int) -> float:
    """Processor seconds."""
    if parameters <= SMALL_MODEL_PARAMETERS:
        return 90.0
    return 480.0 if kind == ModuleKind.CARTRIDGE else 300.0


class Course:
    """The learning rate of each step, and which step is the last.

    It rises, stays, and falls to nothing over FALL_SHARE of all steps. The fall begins early when the
    values' tokens are learned, or when the budget would not reach otherwise.
    """

    def __init__(self, steps: int, stop_loss: float, *, fall_from: int | None = None) -> None:
        """fall_from: of a course that goes on."""
        self._stop_loss = stop_loss
        self.steps = steps
        self.fall_from = max(1, round(steps * (1 - FALL_SHARE)))
        self.why = "all steps were taken"
        if fall_from is not None and fall_from < self.fall_from:
            self._fall(fall_from)
            self.why = "it went on with its fall"

    def share(self, step: int) -> float:
        """Of the full learning rate, above 0."""
        warm = min(1.0, (step + 1) / WARM_STEPS)
        if step < self.fall_from:
            return warm
        return warm * max(0.02, (self.steps - step) / max(1, self.steps - self.fall_from))

    def note(self, step: int, medians: Sequence[float], kept: Sequence[float], spent_share: float) -> None:
        """After each step.

        medians: the last steps' median losses of the values' tokens (arXiv 2605.24657: the median follows
        accuracy, the mean does not). kept: the last steps' mean divergences of the replayed answers.
        spent_share: of the budget. When it is used up, the course ends: one that went on after a kill has
        worked for that again.
        """
        if spent_share >= 1 and step + 1 >= LEAST_STEPS:
            self.steps = step + 1
            self.why = "the budget was used"
            return
        if step + 1 >= self.fall_from:
            return
        known = all(
            len(losses) >= WINDOW and statistics.median(losses[-WINDOW:]) < self._stop_loss
            for losses in (medians, kept)
        )
        if known and step + 1 >= LEAST_STEPS:
            self._fall(step + 1)
            self.why = "the values are learned, and the replayed answers are the base's"
        elif spent_share >= 1 - FALL_SHARE:
            self._fall(step + 1)
            self.why = "the budget was used"

    def _fall(self, step: int) -> None:
        self.fall_from = step
        self.steps = min(self.steps, max(step + 1, math.ceil(step / (1 - FALL_SHARE))))
