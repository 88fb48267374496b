"""What each rung costs, from figures that were measured on SmolLM2-135M-Instruct on two CPU cores.

A figure's source is named beside it. "Prototype" is the one that came before memserve's own distillation
(24 facts in a document of 283 tokens, 48 questions); `docs/benchmarks.md` has the others. The times of making
grow with the document's length here: that is assumed, not measured.
"""

from __future__ import annotations

from collections.abc import Mapping

from memserve.domain.ladder import Rung, RungCost

KV_TOKEN_BYTES = 23 << 10
"""Of KV in bfloat16: 30 layers, 3 KV heads of 64."""
BLOCK_TOKENS = 32
# `real_model`: 3,683 tokens take 11.5 s cold and 0.10 s warm.
COLD_TOKEN_S = (11.5 - 0.10) / 3683
WARM_S = 0.10
QUESTION_TOKENS = 25
"""`memory_recall --model smollm2`: computed for a question to a module."""
# `memory_recall --model smollm2`: recall from relevance 0.5, and without memory.
RECALL_S, RECALL_TOKENS, BASE_S = 0.168, 50, 0.105
# `cartridge_serving`: TTFT over the base's. `memory_recall --model smollm2`: of a request that names a LoRA.
CARTRIDGE_S, LORA_S = 1.13 * BASE_S, 0.145
# Prototype: 128 positions of 2.9 MB, and rank 16, both in bfloat16.
LORA_BYTES = 9_800_000
CARTRIDGE_SHARE = 0.4
"""Positions of a cartridge for each token of its document. Prototype: 40 % or more."""
# Prototype: CPU seconds for 24 facts, 283 tokens.
CARTRIDGE_MAKE_S, LORA_MAKE_S, MADE_TOKENS = 241.0, 234.0, 283
LOAD_S = 0.3
"""Of files that are kept. `module_cold_start`: a load adds a quarter of a TTFT of 63 ms; with room for the
fetch."""
# Prototype, right of 48 questions, templates and paraphrases together: the right sentence alone, the document
# in the prompt, cartridge, LoRA.
RIGHT_SENTENCE, RIGHT_DOCUMENT, RIGHT_CARTRIDGE, RIGHT_LORA = 23 / 48, 13 / 48, 29 / 48, 31 / 48


def costs_of(tokens: int, *, whole: bool, kept: frozenset[Rung]) -> Mapping[Rung, RungCost]:
    """Of a document of so many tokens.

    whole: as text it stands in the prompt as a whole, else single memories of it are recalled.
    kept: rungs whose files are kept from before.
    """
    positions = max(128, -(-int(CARTRIDGE_SHARE * tokens) // BLOCK_TOKENS) * BLOCK_TOKENS)
    longer = tokens / MADE_TOKENS
    cold_s = WARM_S + COLD_TOKEN_S * tokens
    if whole:
        text = RungCost(tokens + QUESTION_TOKENS, cold_s, 0, 0.0, RIGHT_DOCUMENT)
    else:
        text = RungCost(RECALL_TOKENS, RECALL_S, 0, 0.0, RIGHT_SENTENCE)
    trained = {
        Rung.CARTRIDGE: (CARTRIDGE_S, positions * KV_TOKEN_BYTES, CARTRIDGE_MAKE_S, RIGHT_CARTRIDGE),
        Rung.LORA: (LORA_S, LORA_BYTES, LORA_MAKE_S, RIGHT_LORA),
    }
    return {
        Rung.TEXT: text,
        Rung.PREFIX: RungCost(QUESTION_TOKENS, WARM_S, tokens * KV_TOKEN_BYTES, cold_s, RIGHT_DOCUMENT),
    } | {
        rung: RungCost(QUESTION_TOKENS, ttft_s, size, LOAD_S if rung in kept else longer * make_s, right)
        for rung, (ttft_s, size, make_s, right) in trained.items()
    }
