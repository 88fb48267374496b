"""How an engine holds LoRA adapters."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm import SamplingParams
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from memserve.config import Settings
from memserve.domain import ModulePlace
from memserve.errors import InvalidModule
from memserve.model.architectures import no_lora_reason
from memserve.model.files import ModelFiles
from memserve.worker.modules.kinds.kind import EngineCall, refusal
from memserve.worker.modules.room import Places

TRIAL_LOGPROBS = 5
# When a module makes another token the likeliest, its change counts as at least this much.
MIN_CHANGE = 1e-3


class LoraKind:
    """vLLM knows an adapter by a number. In one process a number belongs to the same digest for ever."""

    setting = "max_cpu_loras"

    def __init__(self, llm: AsyncLLM, settings: Settings) -> None:
        self.capacity = _held_max(settings)
        self._llm = llm
        self._digests: list[str] = []
        self._ids: dict[str, int] = {}

    @staticmethod
    def absent_reason(settings: Settings, model: ModelFiles) -> str:
        if settings.max_loras == 0:
            return "setting max_loras is 0"
        reason = no_lora_reason(model.architecture)
        if not reason and model.has_experts and current_platform.is_cpu():
            return "vLLM's LoRA for a mixture of experts does not run on the CPU"
        return reason

    @staticmethod
    def engine_arguments(settings: Settings) -> dict[str, Any]:
        return {
            "enable_lora": True,
            "max_loras": settings.max_loras,
            "max_cpu_loras": _held_max(settings),
            "max_lora_rank": settings.max_lora_rank,
        }

    def request(self, digest: str) -> LoRARequest:
        """The adapter as vLLM's requests name it.

        Its name and its path derive from the digest, and block keys contain both. So KV of one version is
        never used for another version, and keys are equal on every machine.
        """
        if digest not in self._ids:
            self._digests.append(digest)
            self._ids[digest] = len(self._digests)
        return LoRARequest(lora_name=digest, lora_int_id=self._ids[digest], lora_path=f"modules/{digest}")

    def apply(self, call: EngineCall, digest: str, folder: Path, strength: float) -> None:
        call.lora = self.request(digest)

    async def effect(self, digest: str, folder: Path, prompts: Sequence[Sequence[int]]) -> float:
        """The largest change of a next token's log-probability."""
        changes = [
            largest_change(
                await self._next_token(prompt, None), await self._next_token(prompt, self.request(digest))
            )
            for prompt in prompts
        ]
        return max(changes)

    async def places(self) -> Places:
        return self._by_digest(await self._llm.collective_rpc("lora_places"))

    async def load(self, digest: str, folder: Path, leaving: str | None) -> Places:
        request = self.request(digest)
        leaving_id = None if leaving is None else self._ids[leaving]
        arguments = (request.lora_name, request.lora_int_id, request.lora_path, leaving_id)
        try:
            return self._by_digest(await self._llm.collective_rpc("exchange_lora", args=arguments))
        except Exception as error:
            raise refusal(self._llm, digest, error) from error

    async def unload(self, digest: str) -> Places:
        await self._llm.remove_lora(self._ids[digest])
        return await self.places()

    def _by_digest(self, answers: list[dict[str, list[int]]]) -> Places:
        places = answers[0]  # the answers of all ranks of an engine are equal
        slots = set(places["device"])
        return {
            self._digests[held - 1]: ModulePlace.DEVICE if held in slots else ModulePlace.HOST
            for held in places["held"]
        }

    async def _next_token(self, prompt: Sequence[int], lora: LoRARequest | None) -> dict[int, float]:
        """The likeliest next tokens and their log-probabilities, the likeliest first."""
        params = SamplingParams(
            max_tokens=1, temperature=0.0, logprobs=TRIAL_LOGPROBS, output_kind=RequestOutputKind.FINAL_ONLY
        )
        salted: Any = {"prompt_token_ids": list(prompt), "cache_salt": "_canary"}
        outputs = self._llm.generate(salted, params, f"canary-{uuid.uuid4().hex}", lora_request=lora)
        (output,) = [output async for output in outputs]
        (step,) = output.outputs[0].logprobs
        ranked = sorted(step.items(), key=lambda item: -item[1].logprob)
        return {token: entry.logprob for token, entry in ranked}


def largest_change(base: dict[int, float], changed: dict[int, float]) -> float:
    """The largest change of a log-probability, over the tokens that both have.

    When the likeliest token differs, that is a change of at least MIN_CHANGE.

    base, changed: log-probabilities of tokens, the likeliest token first.
    Raises InvalidModule where those with the module are no numbers.
    """
    if not all(map(math.isfinite, changed.values())):
        raise InvalidModule("module", "makes log-probabilities that are no numbers: its values are too large")
    both = base.keys() & changed.keys()
    largest = max((abs(base[token] - changed[token]) for token in both), default=0.0)
    if next(iter(base)) != next(iter(changed)):
        largest = max(largest, abs(max(base.values()) - max(changed.values())), MIN_CHANGE)
    return largest


def _held_max(settings: Settings) -> int:
    """How many adapters host memory holds. All adapters in slots must fit."""
    return max(settings.max_cpu_loras, settings.max_loras)
