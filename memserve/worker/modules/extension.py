"""What vLLM's worker learns from memserve: to say which modules it holds where, and to take one in for
another.

vLLM mixes one class into its worker (`worker_extension_cls`) and calls its methods by name
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
from memserve.worker.modules.kinds.logit_expert import ExpertLoading, Followed, Reader

WORKER_EXTENSION = f"{__name__}.WorkerExtension"


class LoraExtension:
    """Methods of a vLLM worker. Adapters go by their vLLM ids; what is returned is plain, it travels between
    processes.
    """

    model_runner: Any

    def lora_places(self) -> dict[str, list[int]]:
        """{"device": adapters in a slot of the batch, "held": all in host memory, those in a slot too}, least
        recently used first.
        """
        loras = lora_manager(self.model_runner)
        return {"device": adapters_in_slots(loras), "held": adapters_in_memory(loras)}

    def exchange_lora(self, name: str, lora_id: int, path: str, leaving: int | None) -> dict[str, list[int]]:
        """Load an adapter, into a slot too, and let `leaving` go for it. Returns the places after it.

        An adapter that cannot be read changes nothing.
        """
        loras = lora_manager(self.model_runner)
        if leaving is not None:
            # vLLM makes room only once it has read the new adapter, and lets the oldest go.
            for other in adapters_in_memory(loras):
                if other != leaving:
                    count_adapter_as_used(loras, other)
        try:
            loras.add_adapter(LoRARequest(name, lora_id, path))
        except Exception:
            # One whose shapes do not fit is held and has a slot before that comes out.
            loras.remove_adapter(lora_id)
            raise
        return self.lora_places()


class WorkerExtension(LoraExtension, ExpertLoading):
    """All that memserve adds to vLLM's worker."""

    @torch.inference_mode()
    def expert_effect(self, digest: str, path: str, prompts: Sequence[Sequence[int]]) -> float:
        """The largest change of the log-odds of two next tokens that the expert makes with alpha 1, over
        prompts of token ids.
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
