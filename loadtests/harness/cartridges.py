"""Cartridges out of texts' own KV, and what transformers answers with the same KV before a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memserve.demo import MODEL_DIR
from memserve.memory.modules.kinds.cartridge import cartridge_files
from memserve.model.files import ModelFiles, open_model

Kv = npt.NDArray[np.float32]
"""[tokens, layers, 2, KV heads, head size]"""


class Reference:
    """A model in transformers, in float32."""

    def __init__(self, model: Path = MODEL_DIR, adapter: Path | None = None) -> None:
        """adapter: a LoRA that answers."""
        import torch
        from transformers import AutoModelForCausalLM

        self._torch = torch
        self.model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        if adapter is not None:
            from peft import PeftModel

            self.model = PeftModel.from_pretrained(self.model, adapter)
        ends = self.model.generation_config.eos_token_id
        self._ends = list(ends) if isinstance(ends, list) else [ends]
        self.model.eval()

    def kv(self, token_ids: Sequence[int]) -> Kv:
        """The KV of a text that begins a prompt."""
        torch = self._torch
        with torch.inference_mode():
            cache = self.model(torch.tensor([list(token_ids)]), use_cache=True).past_key_values
        layers = [torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers]
        # [layers, 2, heads, tokens, head size]
        kv: Kv = torch.stack(layers).permute(3, 0, 1, 2, 4).contiguous().numpy()
        return kv

    def answer(self, kv: Kv | None, token_ids: Sequence[int], tokens: int) -> list[int]:
        """The likeliest tokens behind a prompt with this KV before it, but for those that end an answer.

        token_ids: what stands behind the KV.
        """
        return [token for token, _ in self.steps(kv, token_ids, tokens)]

    def steps(
        self, kv: Kv | None, token_ids: Sequence[int], tokens: int, *, to_the_end: bool = False
    ) -> list[tuple[int, float]]:
        """As `answer`, and how far the logit of each token leads that of the next best one.

        to_the_end: the answer ends where the model ends it. The token that ends it is the last one.
        """
        from transformers import DynamicCache

        torch = self._torch
        cache = DynamicCache()
        if kv is not None:
            for number, layer in enumerate(torch.from_numpy(kv).permute(1, 2, 3, 0, 4)):
                cache.update(layer[0].unsqueeze(0), layer[1].unsqueeze(0), number)
        ids = torch.tensor([list(token_ids)])
        steps: list[tuple[int, float]] = []
        with torch.inference_mode():
            while len(steps) < tokens and not (to_the_end and steps and steps[-1][0] in self._ends):
                logits = self.model(ids, past_key_values=cache, use_cache=True).logits[0, -1]
                if not to_the_end:
                    logits[self._ends] = -torch.inf
                best, second = logits.topk(2).values.tolist()
                steps.append((int(logits.argmax()), best - second))
                ids = torch.tensor([[steps[-1][0]]])
        return steps


def write_cartridge(folder: Path, kv: Kv, model: ModelFiles | None = None) -> Path:
    """Write a cartridge's files. Returns the folder.

    model: the one that the KV is for. None: the demo model.
    """
    model = model or open_model(MODEL_DIR)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in cartridge_files(kv, model.model_digest(), model.rope).items():
        (folder / name).write_bytes(content)
    return folder
