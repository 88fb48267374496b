"""The trial of a module in a running engine: does it change anything that the model says?"""

from __future__ import annotations

import random

from memserve.domain import ModuleKind
from memserve.worker.engine.engine import Engine

SEED = 0
PROMPTS = 3
PROMPT_TOKENS = 16


async def try_module(engine: Engine, digest: str, kind: ModuleKind) -> float:
    """The largest change that the module makes to the answers to canary prompts. 0: none at all.

    What is compared is the kind's to say: `EngineKind.effect`. Raises as `Modules.load`.
    """
    async with engine.modules.using(digest, kind):
        draw = random.Random(SEED)
        vocabulary = engine.llm.model_config.get_vocab_size()
        prompts = [[draw.randrange(vocabulary) for _ in range(PROMPT_TOKENS)] for _ in range(PROMPTS)]
        return await engine.kinds[kind].effect(digest, engine.module_folder(digest), prompts)
