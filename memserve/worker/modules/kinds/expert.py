"""How an engine holds logit experts, in its logits processor on the device."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm import SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM

from memserve.config import Settings
from memserve.domain import ModulePlace
from memserve.model.files import ModelFiles
from memserve.worker.modules.kinds.kind import EngineCall, refusal
from memserve.worker.modules.kinds.logit_expert import LIMIT, PROCESSOR, expert_parameters, load_expert
from memserve.worker.modules.room import Places


class LogitExpertKind:
    """Calls the logits processor of `logit_expert.py` in a running engine."""

    setting = "max_experts"

    def __init__(self, llm: AsyncLLM, settings: Settings) -> None:
        self.capacity = settings.max_experts
        self._llm = llm

    @staticmethod
    def absent_reason(settings: Settings, model: ModelFiles) -> str:
        return "" if settings.max_experts else "setting max_experts is 0"

    @staticmethod
    def engine_arguments(settings: Settings) -> dict[str, Any]:
        return {"logits_processors": [PROCESSOR], "additional_config": {LIMIT: settings.max_experts}}

    def apply(self, call: EngineCall, digest: str, folder: Path, strength: float) -> None:
        call.extra_args.update(expert_parameters(digest, strength, str(folder)))

    async def effect(self, digest: str, folder: Path, prompts: Sequence[Sequence[int]]) -> float:
        """The largest change of the log-odds of two tokens.

        vLLM's log-probabilities cannot show it, because vLLM takes them before the logits processors run.
        """
        effects: list[float] = await self._llm.collective_rpc(
            "expert_effect", args=(digest, str(folder), prompts)
        )
        return effects[0]

    async def places(self) -> Places:
        loaded: list[list[str]] = await self._llm.collective_rpc("loaded_experts")
        return dict.fromkeys(loaded[0], ModulePlace.DEVICE)

    async def load(self, digest: str, folder: Path, leaving: str | None) -> Places:
        # Without this the processor would drop its least recently used expert. It knows nothing of pins.
        if leaving is not None:
            await self._unload(leaving)
        try:
            await load_expert(self._llm, digest, str(folder))
        except Exception as error:
            raise refusal(self._llm, digest, error) from error
        return await self.places()

    async def unload(self, digest: str) -> Places:
        await self._unload(digest)
        return await self.places()

    async def _unload(self, digest: str) -> None:
        """Drop an expert that no unfinished request uses."""
        while not all(await self._llm.collective_rpc("unload_expert", args=(digest,))):
            # The last request that used the expert has ended. It leaves the engine's batch with the next
            # step. This short answer makes the engine take a step.
            step = self._llm.generate(
                {"prompt_token_ids": [0]}, SamplingParams(max_tokens=1), f"step-{uuid.uuid4().hex}"
            )
            async for _ in step:
                pass
