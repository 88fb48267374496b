"""Prefix reuse of recall traffic: the cached share of prompt tokens, by the order of the recalled passages.

Seeded memories about subjects, stored in mixed order, and questions whose subject, and then whose fact, are
Zipf-popular and which are phrased in many ways. The bundled embedding model and memserve's own ranking find
the five best memories. The gateway's own code makes the prompts, with the passages by score, by creation, and
in the canonical order, each with and without pinned passages ahead of them. A real vLLM engine on the demo
model answers them one after another, from the same empty cache, and says what it had cached. Its block pool
has room for about half of the tokens of all memories.

A model of the block pool shows other block and pool sizes, and what own system texts of requests cost. The
first table has the model's figure beside the engine's. The share of right answers is shown, because the order
matters to a model that is as small as the demo model; it has no bar.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from loadtests.harness.engines import BLOCK_TOKENS, prepare_environment
from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.texts.memory_reuse.blocks import PrefixPool, cached_share
from loadtests.texts.memory_reuse.prompts import ORDERS, Prompted, demo_layout, pinned_passages, prompts
from loadtests.texts.memory_reuse.traffic import Request, Shape, draw_requests
from memserve.gateway.layout import PromptLayout
from memserve.policy.recall.prompt import Render

SEED = 19
SHAPE, QUICK_SHAPE = Shape(60, 8, 1000), Shape(24, 8, 240)
POOL_SHARE = 0.5
"""Of the tokens of all memories."""
ANSWER_TOKENS = 16
BLOCKS = (16, 32, 128)
POOLS = (0.5, 1.0, 2.0, None)
SYSTEMS = (1, 4, 16)
SYSTEM_TEXT = "You are the assistant of desk {number}. Be brief, be polite, and answer from the notes alone."
BAR = 1.5


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to order, measured."""

    order: str
    pinned: bool
    cached: float
    """Share of the prompt tokens, as the engine says."""
    modelled: float
    """The same, as the model says."""
    right: float | None
    """Share of the answers that are right. None: only a token of each was asked for."""
    prompt_tokens: float
    """Of one prompt, on average."""


def measure(layout: PromptLayout, requests: Sequence[Request], pool_tokens: int) -> list[Arm]:
    from vllm import SamplingParams

    from loadtests.harness.demo_engine import DemoEngine

    blocks = pool_tokens // BLOCK_TOKENS
    engine = DemoEngine(
        {"num_gpu_blocks_override": blocks, "kv_cache_memory_bytes": 256 << 20, "max_num_seqs": 1}
    )
    arms = []
    try:
        for pinned, answer_tokens in (((), ANSWER_TOKENS), (pinned_passages(), 1)):
            params = SamplingParams(temperature=0, max_tokens=answer_tokens)
            for name, order in ORDERS.items():
                engine.forget()
                asked = list(prompts(layout, requests, order, pinned=pinned))
                cached = right = 0
                for prompt in asked:
                    output = engine.output(prompt.token_ids, params)
                    cached += output.num_cached_tokens or 0
                    right += output.outputs[0].text.strip() == prompt.request.question.answer
                tokens = sum(len(prompt.token_ids) for prompt in asked)
                modelled = cached_share(PrefixPool(BLOCK_TOKENS, pool_tokens), _token_ids(asked))
                right_share = None if pinned else right / len(asked)
                arms.append(
                    Arm(name, bool(pinned), cached / tokens, modelled, right_share, tokens / len(asked))
                )
                report(f"{name}{', pinned' * bool(pinned)}: {cached / tokens:.3f} cached")
    finally:
        engine.close()
    return arms


def modelled_sizes(
    layout: PromptLayout, requests: Sequence[Request], memory_tokens: int
) -> list[tuple[int, float | None, dict[str, float]]]:
    """By block size and pool size, the share of each order."""
    made = {name: _token_ids(prompts(layout, requests, order)) for name, order in ORDERS.items()}
    return [
        (
            block,
            pool,
            {
                name: cached_share(
                    PrefixPool(block, None if pool is None else int(pool * memory_tokens)), each
                )
                for name, each in made.items()
            },
        )
        for block in BLOCKS
        for pool in POOLS
    ]


def modelled_systems(
    layout: PromptLayout, requests: Sequence[Request], pool_tokens: int
) -> list[tuple[int, float, float]]:
    """By the number of system texts: the share with that text first, and with it behind the passages."""
    shared, behind = [], _behind(layout.recall.render)
    for count in SYSTEMS:
        systems = [SYSTEM_TEXT.format(number=number) for number in range(count)]
        shares = []
        for render in (layout.recall.render, behind):
            made = prompts(
                layout,
                requests,
                ORDERS["canonical"],
                pinned=pinned_passages(),
                systems=systems,
                render=render,
            )
            shares.append(cached_share(PrefixPool(BLOCK_TOKENS, pool_tokens), _token_ids(made)))
        shared.append((count, shares[0], shares[1]))
    return shared


def _behind(render: Render) -> Render:
    return lambda system, passages: f"{render('', passages)}\n\n{system}"


def _token_ids(made: Iterable[Prompted]) -> list[list[int]]:
    return [prompt.token_ids for prompt in made]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    options = parser("memory_reuse", __doc__)
    options.add_argument("--seed", type=int, default=SEED, help=f"seed of the traffic (default: {SEED})")
    chosen = options.parse_args(arguments)
    prepare_environment()
    shape = QUICK_SHAPE if chosen.quick else SHAPE
    memories, requests = draw_requests(shape, chosen.seed)
    layout = demo_layout()
    memory_tokens = sum(layout.tokenizer.lengths([memory.text for memory in memories]))
    pool_tokens = int(POOL_SHARE * memory_tokens) // BLOCK_TOKENS * BLOCK_TOKENS
    report(
        f"{len(memories)} memories of {memory_tokens / len(memories):.0f} tokens, {len(requests)} requests"
    )
    arms = measure(layout, requests, pool_tokens)
    sizes = modelled_sizes(layout, requests, memory_tokens)
    systems = modelled_systems(layout, requests, pool_tokens)
    return _tell(arms, sizes, systems, as_json=chosen.json)


def _tell(
    arms: Sequence[Arm],
    sizes: Sequence[tuple[int, float | None, dict[str, float]]],
    systems: Sequence[tuple[int, float, float]],
    *,
    as_json: bool,
) -> int:
    by_name = {(arm.order, arm.pinned): arm for arm in arms}
    rows = [
        (
            arm.order + ", with pinned passages" * arm.pinned,
            f"{arm.prompt_tokens:.0f}",
            f"{arm.cached:.3f}",
            f"{arm.cached / by_name['by score', arm.pinned].cached:.2f}",
            f"{arm.modelled:.3f}",
            "" if arm.right is None else f"{arm.right:.3f}",
        )
        for arm in arms
    ]
    columns = ("engine", "prompt tokens", "cached share", "÷ by score", "model says", "right answers")
    print_table(columns, rows)
    print()
    print_table(
        ("model: block", "pool ÷ memories", *ORDERS, "canonical ÷ by score"),
        [
            (block, "no bound" if pool is None else pool, *(f"{share:.3f}" for share in shares.values()),
             f"{shares['canonical'] / shares['by score']:.2f}")
            for block, pool, shares in sizes
        ],
    )  # fmt: skip
    print()
    print_table(
        ("model: system texts", "system text first", "behind the passages"),
        [(count, f"{first:.3f}", f"{behind:.3f}") for count, first, behind in systems],
    )
    score, canonical = by_name["by score", False], by_name["canonical", False]
    bars = [
        Bar("cached share, canonical ÷ by score", canonical.cached / score.cached, at_least=BAR),
    ]
    figures: dict[str, object] = {
        "engine": rows,
        "sizes": [(block, pool, shares) for block, pool, shares in sizes],
        "systems": list(systems),
    }
    return finish(bars, figures, as_json)


if __name__ == "__main__":
    sys.exit(main())
