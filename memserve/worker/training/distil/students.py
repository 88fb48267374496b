"""What is trained on the base model: one student for each kind that can be distilled."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from safetensors.torch import save
from torch import Tensor

from memserve.domain import ModuleKind, Recipe
from memserve.errors import InvalidField
from memserve.memory.modules.kinds.cartridge import PEFT_TENSOR, cartridge_files
from memserve.memory.modules.kinds.cartridge import WEIGHTS_FILE as CARTRIDGE_FILE
from memserve.memory.modules.kinds.files import canonical_json
from memserve.memory.modules.kinds.lora import CONFIG_FILE, WEIGHTS_FILE
from memserve.model.files import open_model
from memserve.policy.modules.recipes import cartridge_tokens
from memserve.worker.training.distil.order import DistilOrder
from memserve.worker.training.distil.packing import Packed
from memserve.worker.training.distil.teacher import answer_logits, kv_of

LORA_SCALE = 2.0
"""Of a LoRA: lora_alpha by its rank."""
_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a student begins with."""

    base: Any
    """A causal model of transformers. A student may change it in place."""
    recipe: Recipe
    """With a number for everything."""
    order: DistilOrder
    document: tuple[int, ...]
    """All memories as the beginning of a prompt."""


class Student(Protocol):
    """A module that is being trained. It holds the base model."""

    behind: ClassVar[bool]
    """Whether prompts go on behind the module, as behind a cartridge."""

    def logits(self, batch: Packed) -> Tensor:
        """[answer tokens, vocabulary] float32, with the module applied."""

    def parameters(self) -> dict[str, Tensor]:
        """What is trained, by names that stay the same: float32."""

    def as_base(self) -> AbstractContextManager[object]:
        """Within it the model is the base alone."""

    def files(self) -> dict[str, bytes]:
        """The module as a publisher sends it."""


class LoraStudent:
    """A LoRA on all linear projections of the layers."""

    behind: ClassVar[bool] = False

    def __init__(self, beginning: Beginning) -> None:
        from peft import LoraConfig, get_peft_model

        base, recipe = beginning.base, beginning.recipe
        self._dtype = base.dtype
        self._rank = recipe.rank
        names = {name.rsplit(".", 1)[-1] for name, _ in base.named_modules()}
        self._targets = sorted(names & set(_TARGETS))
        config = LoraConfig(
            r=recipe.rank, lora_alpha=2 * recipe.rank, target_modules=self._targets, task_type="CAUSAL_LM"
        )
        self._adapted: Any = get_peft_model(base, config)
        for weight in self._trained():
            weight.data = weight.data.float()
        self._model = base

    def logits(self, batch: Packed) -> Tensor:
        return answer_logits(self._model, batch)

    def parameters(self) -> dict[str, Tensor]:
        return {name: weight for name, weight in self._adapted.named_parameters() if weight.requires_grad}

    def as_base(self) -> AbstractContextManager[object]:
        context: AbstractContextManager[object] = self._adapted.disable_adapter()
        return context

    def files(self) -> dict[str, bytes]:
        tensors = {
            name.replace(".default.", "."): weight.detach().to(self._dtype).contiguous()
            for name, weight in self.parameters().items()
        }
        config = {
            "base_model_name_or_path": "",
            "bias": "none",
            "lora_alpha": 2 * self._rank,
            "peft_type": "LORA",
            "r": self._rank,
            "target_modules": self._targets,
            "task_type": "CAUSAL_LM",
            "use_rslora": False,
        }
        return {CONFIG_FILE: canonical_json(config), WEIGHTS_FILE: save(tensors)}

    def _trained(self) -> Iterator[Any]:
        return (weight for weight in self._adapted.parameters() if weight.requires_grad)


class CartridgeStudent:
    """KV before the prompt. It begins as the memories' own.

    Source: Cartridges, Eyuboglu et al. 2025, arXiv 2506.06266.
    """

    behind: ClassVar[bool] = True

    def __init__(self, beginning: Beginning) -> None:
        """Raises InvalidField for a base that takes no cartridge, and for a number of positions."""
        order = beginning.order
        files = open_model(order.model)
        if files.no_prefix_reason:
            raise InvalidField("kind", f"no cartridge fits the served model: {files.no_prefix_reason}")
        ids = list(beginning.document)
        while len(ids) < order.block_tokens:
            ids += beginning.document
        tokens = cartridge_tokens(
            beginning.recipe.tokens, len(ids), order.block_tokens, files.max_context_tokens
        )
        self._base = beginning.base
        self._digest = order.base_digest or files.model_digest()
        self._rope = files.rope
        self._documents = [hashlib.sha256(text.encode()).hexdigest() for text in order.texts]
        kv = kv_of(self._base, ids[:tokens]).float()
        # The first token takes up what attention has nowhere else to put. It stays as it is.
        self._first, rest = kv[:, :, :, :1], kv[:, :, :, 1:]
        self._rest = rest.clone().requires_grad_()

    def logits(self, batch: Packed) -> Tensor:
        return answer_logits(self._base, batch, self._kv)

    def parameters(self) -> dict[str, Tensor]:
        return {"kv": self._rest}

    def as_base(self) -> AbstractContextManager[object]:
        return nullcontext()

    def files(self) -> dict[str, bytes]:
        # [tokens, layers, 2, KV heads, head size]
        kv = self._kv.detach().permute(3, 0, 1, 2, 4)
        files = cartridge_files(kv.float().numpy(), self._digest, self._rope, self._documents)
        return files | {CARTRIDGE_FILE: save({PEFT_TENSOR: kv.reshape(len(kv), -1).contiguous()})}

    @property
    def _kv(self) -> Tensor:
        """[layers, 2, KV heads, tokens, head size] in the base's precision, in which it is served."""
        return torch.cat([self._first, self._rest], dim=3).to(self._base.dtype)


STUDENTS: Mapping[ModuleKind, Callable[[Beginning], Student]] = {
    ModuleKind.LORA: LoraStudent,
    ModuleKind.CARTRIDGE: CartridgeStudent,
}
"""The kinds that can be distilled."""


def norm(weights: Mapping[str, Tensor]) -> float:
    """The Frobenius norm of all weights together."""
    return float(torch.stack([weight.detach().norm() for weight in weights.values()]).norm())
