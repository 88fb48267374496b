"""The methods that memserve adds to vLLM's worker. They tell where its modules are, and exchange modules.

vLLM mixes one class into its worker (`worker_extension_cls`). It calls the class's methods by name
(`AsyncLLM.collective_rpc`), between two steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from vllm.lora.request import LoRARequest

from memserve.worker.kv.vllm_internals import (
    adapters_in_memory,
    adapters_in_slots,
    count_adapter_as_used,
    lora_manager,
)
from memserve.worker.modules.kinds.cartridge import CartridgeLoading
from memserve.worker.modules.kinds.logit_expert import ExpertLoading, Followed, Reader

WORKER_EXTENSION = f"{__name__}.WorkerExtension"


class LoraExtension:
    """Methods of a vLLM worker for adapters. An adapter's number is its vLLM id.

    Results are plain values, because they travel between processes.
    """

    model_runner: Any

    def lora_places(self) -> dict[str, list[int]]:
        """{"device": [adapters in a slot of the batch], "held": [all adapters in host memory]}.

        Adapters in a slot are in host memory too. Both lists begin with the least recently used adapter.
        """
        loras = lora_manager(self.model_runner)
        return {"device": adapters_in_slots(loras), "held": adapters_in_memory(loras)}

    def exchange_lora(self, name: str, lora_id: int, path: str, leaving: int | None) -> dict[str, list[int]]:
        """Load an adapter into host memory and a slot, and let `leaving` go. Returns the places after that.

        An adapter that cannot be read takes no place. It only changes the order: `leaving` then counts as the
        least recently used adapter.
        """
        loras = lora_manager(self.model_runner)
        if leaving is not None:
            # When vLLM has read the new adapter, it makes room by letting the least recently used adapter go.
            # That adapter has to be `leaving`.
            for other in adapters_in_memory(loras):
                if other != leaving:
                    count_adapter_as_used(loras, other)
        try:
            loras.add_adapter(LoRARequest(name, lora_id, path))
        except Exception:
            # vLLM notices shapes that do not fit only when the adapter is in memory and has a slot.
            loras.remove_adapter(lora_id)
            raise
        return self.lora_places()


class WorkerExtension(LoraExtension, ExpertLoading, CartridgeLoading):
    """All methods that memserve adds to vLLM's worker."""

    @torch.inference_mode()
    def expert_effect(self, digest: str, path: str, prompts: Sequence[Sequence[int]]) -> float:
        """The largest change that the expert makes to the log-odds of two next tokens, with alpha 1.

        prompts: token ids.
        """
        experts = self._logit_experts()
        expert = experts.shelf.get(digest, path, experts.in_use)
        largest = 0.0
        for prompt in prompts:
            anti = Reader(expert.anti) if expert.anti is not None else None
            followed = Followed(digest, 1.0, list(prompt), [], Reader(expert.own), anti)
            unread = followed.unread()
            for reader in followed.readers:
                (reader.logits,) = reader.model.read([(reader.state, unread)])
            shift = followed.shift()
            largest = max(largest, float(shift.max() - shift.min()))
        return largest
