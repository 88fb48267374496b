"""How an engine holds soft prompts: in host memory. A request brings its own to vLLM."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from memserve.config import Settings
from memserve.domain import EmbeddedRows, ModulePlace
from memserve.domain.worker_calls import PLACEHOLDER_TOKEN
from memserve.memory.modules.kinds.soft_prompt import WEIGHTS_FILE, read_rows
from memserve.model.architectures import no_embeddings_reason
from memserve.model.files import ModelFiles
from memserve.worker.modules.kinds.embedded import SoftPrompt, soft_prompt_of
from memserve.worker.modules.kinds.kind import EngineCall, held_bytes
from memserve.worker.modules.kinds.lora import TRIAL_LOGPROBS, largest_change
from memserve.worker.modules.room import Places

CANARY_SALT = "_canary"
# The embeddings as vLLM takes them, and as block keys have them.
COPIES = 2


class SoftPromptKind:
    """The only way by which embeddings reach an engine: from the files of a published version."""

    setting = "max_soft_prompts"
    bytes_setting = "prefix_host_bytes"

    def __init__(self, llm: AsyncLLM, settings: Settings) -> None:
        self.capacity = settings.max_soft_prompts
        self.capacity_bytes = settings.prefix_host_bytes
        self._llm = llm
        # Least recently used first.
        self._held: dict[str, SoftPrompt] = {}

    @staticmethod
    def absent_reason(settings: Settings, model: ModelFiles) -> str:
        if settings.max_soft_prompts == 0:
            return "setting max_soft_prompts is 0"
        return no_embeddings_reason(model.architecture)

    @staticmethod
    def engine_arguments(settings: Settings) -> dict[str, Any]:
        return {"enable_prompt_embeds": True}

    def apply(self, call: EngineCall, digest: str, folder: Path, strength: float) -> None:
        call.soft_prompt = self._held[digest] = self._held.pop(digest)  # to the end: the most recently used

    def rows(self, digest: str) -> EmbeddedRows | None:
        """Of a soft prompt that is here. None: it is not."""
        held = self._held.get(digest)
        return None if held is None else held.rows

    async def effect(self, digest: str, folder: Path, prompts: Sequence[Sequence[int]]) -> float:
        """The largest change of a next token's log-probability."""
        held = self._held[digest]
        changes = [
            largest_change(await self._next_token(prompt, None), await self._next_token(prompt, held))
            for prompt in prompts
        ]
        return max(changes)

    async def places(self) -> Places:
        return dict.fromkeys(self._held, ModulePlace.HOST)

    async def load(self, digest: str, folder: Path, leaving: str | None) -> Places:
        config = self._llm.model_config
        width, context_tokens = config.get_inputs_embeds_size(), config.max_model_len
        dtype = str(config.dtype).removeprefix("torch.")
        rows = await asyncio.to_thread(read_rows, folder, width, dtype, context_tokens // 2)
        self._held[digest] = soft_prompt_of(digest, rows, width, config.dtype)
        if leaving is not None:
            self._held.pop(leaving, None)
        return await self.places()

    async def size_bytes(self, folder: Path) -> int:
        file = folder / WEIGHTS_FILE
        return COPIES * await asyncio.to_thread(held_bytes, file, self._llm.model_config.dtype)

    async def unload(self, digest: str) -> Places:
        self._held.pop(digest, None)
        return await self.places()

    async def _next_token(self, prompt: Sequence[int], held: SoftPrompt | None) -> dict[int, float]:
        """The likeliest next tokens and their log-probabilities, the likeliest first."""
        asked: Any = {"prompt_token_ids": list(prompt), "cache_salt": CANARY_SALT}
        if held is not None:
            asked = held.prompt([PLACEHOLDER_TOKEN] * held.tokens + list(prompt), CANARY_SALT)
        params = SamplingParams(
            max_tokens=1, temperature=0.0, logprobs=TRIAL_LOGPROBS, output_kind=RequestOutputKind.FINAL_ONLY
        )
        outputs = [each async for each in self._llm.generate(asked, params, f"canary-{uuid.uuid4().hex}")]
        (step,) = outputs[-1].outputs[0].logprobs
        ranked = sorted(step.items(), key=lambda item: -item[1].logprob)
        return {token: entry.logprob for token, entry in ranked}
