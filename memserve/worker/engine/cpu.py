"""What memserve replaces in vLLM on the CPU platform: the executor, and the LoRA arithmetic.

vLLM 0.32's own arithmetic (`PunicaWrapperCPU`) takes the index -1, which means no adapter, as Python does. It
therefore applies the adapter in the last slot to every base request that shares a batch with an adapter. It
also copies an adapter's weights once for every token.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from memserve.processes.tether import die_with_parent
from memserve.worker.kv.vllm_internals import use_lora_arithmetic

Rows = Sequence[tuple[int, Tensor]]
"""Adapter slots in use, each with its rows (tokens). A row without an adapter belongs to no slot."""


class CpuExecutor(UniProcExecutor):  # type: ignore[misc]
    """The model in the scheduler's process.

    vLLM's own choice is a process for the model beside the scheduler's. Both spin on shared memory while they
    wait for each other, and for a second after. On few cores that keeps everything else from running, Redis
    too, for up to half a second.
    """

    def _init_executor(self) -> None:
        # When its replica is killed, vLLM's engine would wait for requests for ever, with all its memory.
        replica = multiprocessing.parent_process()
        if replica is not None and replica.pid is not None:
            die_with_parent(replica.pid)
        use_lora_arithmetic(f"{LoraByAdapter.__module__}.{LoraByAdapter.__qualname__}")
        super()._init_executor()


class LoraByAdapter(PunicaWrapperCPU):  # type: ignore[misc]
    """LoRA for a batch, one adapter after the other.

    Each adapter changes its own rows. Rows without an adapter stay as they are.
    """

    def update_metadata(self, *arguments: Any, **keywords: Any) -> None:
        super().update_metadata(*arguments, **keywords)
        self._token_rows = rows_by_adapter(self.token_lora_indices)
        self._sampler_rows = rows_by_adapter(self.sampler_indices)

    def _apply_shrink(self, y: Tensor, x: Tensor, w_t_all: Tensor, scale: float) -> None:
        shrink(y.view(-1, y.shape[-1]), x, w_t_all, self._token_rows, scale)

    def _apply_expand(
        self, y: Tensor, x: Tensor, w_t_all: Tensor, y_offset: int, y_slice_size: int, add_inputs: bool = True
    ) -> None:
        expand(y, x, w_t_all, self._token_rows, y_offset, y_slice_size, add_inputs)

    def add_lora_embedding(self, y: Tensor, x: Tensor, lora_b_stacked: Tensor, **_: Any) -> None:
        """No adapter changes the embedding: none that does is published, so that B is zero in every slot.

        In a step with prompt embeddings vLLM embeds the other rows only. It does not say which they are.
        """

    def add_lora_logits(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: Tensor,
        lora_b_stacked: Tensor,
        scale: float,
        *,
        buffer: Tensor | None = None,
        **_: Any,
    ) -> None:
        x = x.view(-1, x.shape[-1])
        if buffer is None:
            buffer = torch.zeros((x.size(0), lora_b_stacked.size(-1)), dtype=torch.float32)
        shrink(buffer, x, lora_a_stacked, self._sampler_rows, scale)
        expand(y.view(-1, y.shape[-1]), buffer, lora_b_stacked, self._sampler_rows, 0, y.shape[-1], True)


def rows_by_adapter(indices: Tensor) -> Rows:
    """indices: [rows], the adapter's slot, or -1 for none."""
    return [
        (slot, (indices == slot).nonzero().squeeze(1)) for slot in sorted(set(indices.tolist())) if slot >= 0
    ]


def shrink(y: Tensor, x: Tensor, weights: Tensor, rows: Rows, scale: float) -> None:
    """y[rows] = scale * x[rows] @ A.T, with the adapter of the rows.

    y: [rows, rank], float32. x: [rows, in]. weights: [slots, 1, rank, in] or [slots, rank, in].
    """
    for slot, own in rows:
        lora_a = weights[slot].view(weights.shape[-2], weights.shape[-1])
        y[own, : lora_a.shape[0]] = scale * (x[own].to(y.dtype) @ lora_a.to(y.dtype).T)


def expand(y: Tensor, x: Tensor, weights: Tensor, rows: Rows, offset: int, width: int, add: bool) -> None:
    """y[rows, offset : offset + width] += x[rows] @ B.T, with the adapter of the rows. Without `add`: =.

    y: [rows, out]. x: [rows, rank]. weights: [slots, 1, out, rank] or [slots, out, rank]. The adapter and the
    model may be padded to different widths.
    """
    for slot, own in rows:
        lora_b = weights[slot].view(weights.shape[-2], weights.shape[-1])
        common = min(width, lora_b.shape[0])
        delta = x[own].to(y.dtype) @ lora_b[:common].to(y.dtype).T
        if add:
            y[own, offset : offset + common] += delta
        else:
            y[own, offset : offset + common] = delta
