"""The parts of `loadtests.memory_reuse`, on a small seeded traffic without an embedding model."""

from __future__ import annotations

import random

from loadtests.texts.memory_reuse.blocks import PrefixPool, cached_share
from loadtests.texts.memory_reuse.prompts import ORDERS, demo_layout, prompts
from loadtests.texts.memory_reuse.traffic import Request, Shape, memories_and_questions
from memserve.domain import Memory, ScoredMemory

SHAPE = Shape(subjects=6, facts_each=8, requests=120)


def test_a_pool_finds_full_blocks_of_what_it_has_seen_and_never_the_last_token() -> None:
    pool = PrefixPool(16, None)
    prompt = list(range(64))
    assert pool.cached_tokens(prompt) == 0
    assert pool.cached_tokens(prompt) == 48
    assert pool.cached_tokens([*prompt, 7]) == 64
    assert pool.cached_tokens([*prompt[:20], *range(100, 140)]) == 16


def test_a_full_pool_gives_up_the_end_of_the_oldest_prompt_first() -> None:
    pool = PrefixPool(16, 64)
    first, second = list(range(49)), list(range(100, 133))
    pool.cached_tokens(first)
    pool.cached_tokens(second)
    assert pool.cached_tokens(first) == 32


def requests_of(seed: int) -> list[Request]:
    """Each about one subject, with five of its memories in an order of its own: the best one first."""
    memories, questions = memories_and_questions(SHAPE, seed)
    about: dict[str, list[Memory]] = {}
    for memory in memories:
        for of_subject in questions:
            name = of_subject[0][0].fact.entity.name
            if name in memory.text:
                about.setdefault(name, []).append(memory)
    rng = random.Random(seed)
    requests = []
    for _ in range(SHAPE.requests):
        of_subject = rng.choices(questions, [1 / rank for rank in range(1, SHAPE.subjects + 1)])[0]
        question = rng.choice(of_subject[0])
        known = about[question.fact.entity.name]
        popular = rng.sample(known[:6], 5)
        hits = [ScoredMemory(memory, 1 - place / 10, None, None) for place, memory in enumerate(popular)]
        requests.append(Request(question, tuple(hits)))
    return requests


def test_one_order_for_a_set_finds_more_of_a_prompt_than_the_order_of_scores() -> None:
    layout, requests = demo_layout(), requests_of(7)
    shares = {
        name: cached_share(
            PrefixPool(32, 2048), (made.token_ids for made in prompts(layout, requests, order))
        )
        for name, order in ORDERS.items()
    }
    assert shares["canonical"] > 1.5 * shares["by score"]
    assert shares["by creation"] > 1.2 * shares["by score"]


def test_the_same_seed_gives_the_same_traffic() -> None:
    assert memories_and_questions(SHAPE, 3) == memories_and_questions(SHAPE, 3)
    assert memories_and_questions(SHAPE, 3) != memories_and_questions(SHAPE, 4)
