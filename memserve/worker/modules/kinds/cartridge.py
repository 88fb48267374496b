"""How an engine holds cartridges: in host memory, from where the connector puts them into blocks."""

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
from memserve.domain import ModulePlace
from memserve.domain.worker_calls import PLACEHOLDER_TOKEN
from memserve.kv.keys import prefix_salt
from memserve.model.files import ModelFiles
from memserve.worker.kv.cartridges import (
    PREFIX,
    WEIGHTS_FILE,
    CartridgeShelf,
    CartridgeUse,
    prefix_parameters,
)
from memserve.worker.kv.vllm_internals import connector_of_this_process
from memserve.worker.modules.kinds.kind import EngineCall, held_bytes, refusal
from memserve.worker.modules.kinds.lora import TRIAL_LOGPROBS, largest_change
from memserve.worker.modules.room import ModuleRefused, Places

CANARY_SALT = "_canary"


class CartridgeKind:
    """Calls the shelf of `worker/kv/cartridges.py` in a running engine."""

    setting = "max_cartridges"
    bytes_setting = "prefix_host_bytes"

    def __init__(self, llm: AsyncLLM, settings: Settings) -> None:
        self.capacity = settings.max_cartridges
        self.capacity_bytes = settings.prefix_host_bytes
        self._llm = llm
        self._tokens: dict[str, int] = {}

    @staticmethod
    def absent_reason(settings: Settings, model: ModelFiles) -> str:
        return model.no_prefix_reason if settings.max_cartridges else "setting max_cartridges is 0"

    @staticmethod
    def engine_arguments(settings: Settings) -> dict[str, Any]:
        return {}

    def apply(self, call: EngineCall, digest: str, folder: Path, strength: float) -> None:
        call.cartridge = CartridgeUse(digest, self._tokens[digest])

    async def effect(self, digest: str, folder: Path, prompts: Sequence[Sequence[int]]) -> float:
        """The largest change of a next token's log-probability."""
        use = CartridgeUse(digest, self._tokens[digest])
        changes = [
            largest_change(await self._next_token(prompt, None), await self._next_token(prompt, use))
            for prompt in prompts
        ]
        return max(changes)

    async def places(self) -> Places:
        return self._by_digest(await self._llm.collective_rpc("held_cartridges"))

    async def load(self, digest: str, folder: Path, leaving: str | None) -> Places:
        reasons = await self._llm.collective_rpc("cartridge_refusal")
        if reason := next(filter(None, reasons), ""):
            raise ModuleRefused(digest, f"this engine takes no cartridges: {reason}")
        try:
            return self._by_digest(
                await self._llm.collective_rpc("exchange_cartridge", args=(digest, str(folder), leaving))
            )
        except Exception as error:
            raise refusal(self._llm, digest, error) from error

    async def size_bytes(self, folder: Path) -> int:
        return await asyncio.to_thread(held_bytes, folder / WEIGHTS_FILE, self._llm.model_config.dtype)

    async def unload(self, digest: str) -> Places:
        return self._by_digest(await self._llm.collective_rpc("drop_cartridge", args=(digest,)))

    def _by_digest(self, answers: list[dict[str, int]]) -> Places:
        self._tokens = dict(answers[0])  # the answers of all ranks of an engine are equal
        return dict.fromkeys(self._tokens, ModulePlace.HOST)

    async def _next_token(self, prompt: Sequence[int], use: CartridgeUse | None) -> dict[int, float]:
        """The likeliest next tokens and their log-probabilities, the likeliest first."""
        token_ids, salt, extra = list(prompt), CANARY_SALT, {}
        if use is not None:
            token_ids = [PLACEHOLDER_TOKEN] * use.tokens + token_ids
            salt = prefix_salt(salt, use.digest)
            extra = {"kv_transfer_params": {PREFIX: prefix_parameters(use.digest, use.tokens)}}
        params = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            logprobs=TRIAL_LOGPROBS,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args=extra,
        )
        salted: Any = {"prompt_token_ids": token_ids, "cache_salt": salt}
        outputs = [each async for each in self._llm.generate(salted, params, f"canary-{uuid.uuid4().hex}")]
        (step,) = outputs[-1].outputs[0].logprobs
        ranked = sorted(step.items(), key=lambda item: -item[1].logprob)
        return {token: entry.logprob for token, entry in ranked}


class CartridgeLoading:
    """Methods of a vLLM worker for cartridges, called by `collective_rpc`, between two steps of the engine.

    Each returns the positions of every cartridge that is held, by digest, the least recently used first.
    """

    def cartridge_refusal(self) -> str:
        """Why this engine takes no cartridges. Empty: it takes them."""
        shelf = _shelf()
        return "it was started without memserve's KV connector" if shelf is None else shelf.refusal

    def exchange_cartridge(self, digest: str, path: str, leaving: str | None) -> dict[str, int]:
        """Read a cartridge, and let `leaving` go. Raises ValueError for one that does not fit."""
        shelf = _shelf()
        assert shelf is not None, "`cartridge_refusal` was asked before"
        shelf.load(digest, Path(path))
        if leaving is not None:
            shelf.drop(leaving)
        return shelf.held()

    def drop_cartridge(self, digest: str) -> dict[str, int]:
        shelf = _shelf()
        if shelf is None:
            return {}
        shelf.drop(digest)
        return shelf.held()

    def held_cartridges(self) -> dict[str, int]:
        shelf = _shelf()
        return {} if shelf is None else shelf.held()


def _shelf() -> CartridgeShelf | None:
    shelf: CartridgeShelf | None = getattr(connector_of_this_process(), "shelf", None)
    return shelf
