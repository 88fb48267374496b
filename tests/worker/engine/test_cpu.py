"""LoRA on the CPU: every row gets its own adapter, and a row without one gets none."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from memserve.demo import ADAPTERS_DIR, MODEL_DIR

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM imports what torch has deprecated
    from memserve.worker.engine.cpu import CpuExecutor, expand, rows_by_adapter, shrink


def test_rows_without_an_adapter_are_in_no_group() -> None:
    groups = {slot: rows.tolist() for slot, rows in rows_by_adapter(torch.tensor([-1, 2, 0, 2, -1]))}
    assert groups == {0: [2], 2: [1, 3]}
    assert rows_by_adapter(torch.tensor([-1, -1])) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_row_is_moved_by_its_own_adapter_only(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    lora_a, lora_b = torch.randn(3, 1, 4, 16, dtype=dtype), torch.randn(3, 1, 8, 4, dtype=dtype)
    x, y = torch.randn(5, 16, dtype=dtype), torch.randn(5, 12, dtype=dtype)
    indices = [-1, 2, 0, 2, -1]
    before, buffer = y.clone(), torch.zeros(5, 4)
    shrink(buffer, x, lora_a, rows_by_adapter(torch.tensor(indices)), 0.5)
    expand(y, buffer, lora_b, rows_by_adapter(torch.tensor(indices)), 3, 8, True)
    for row, slot in enumerate(indices):
        wanted = before[row].clone()
        if slot >= 0:
            wanted[3:11] += (0.5 * (x[row].float() @ lora_a[slot, 0].float().T)).to(dtype) @ lora_b[slot, 0].T
        torch.testing.assert_close(y[row], wanted, rtol=0.02 if dtype is torch.bfloat16 else 1e-5, atol=1e-5)


@pytest.mark.engine
def test_a_base_request_is_answered_alike_alone_and_beside_adapters_in_every_slot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    llm = LLM(
        str(MODEL_DIR),
        dtype="float32",
        max_model_len=512,
        kv_cache_memory_bytes=64 << 20,
        block_size=32,
        enforce_eager=True,
        enable_prefix_caching=False,
        enable_lora=True,
        max_loras=2,
        max_lora_rank=16,
        distributed_executor_backend=CpuExecutor,
    )
    names = ("harbour", "observatory")
    loras = [LoRARequest(name, number + 1, str(ADAPTERS_DIR / name)) for number, name in enumerate(names)]
    questions = [
        "Can you name the captain of Southern Voyager?",
        "Say what the colour of Coral Dome is.",
        "Who are you?",
    ]

    def ask(batch: list[tuple[str, Any]]) -> list[list[float]]:
        params = SamplingParams(temperature=0, max_tokens=8, logprobs=0)
        conversations: Any = [[{"role": "user", "content": question}] for question, _ in batch]
        outputs = llm.chat(conversations, params, lora_request=[lora for _, lora in batch], use_tqdm=False)
        return [
            [next(iter(step.values())).logprob for step in output.outputs[0].logprobs or ()]
            for output in outputs
        ]

    try:
        ask([(questions[0], lora) for lora in loras])  # both slots are taken
        batch = [(question, lora) for question in questions for lora in (None, *loras)]
        together = ask(batch)
        for one, beside_others in zip(batch, together, strict=True):
            assert ask([one])[0] == pytest.approx(beside_others, abs=1e-3)
    finally:
        llm.llm_engine.engine_core.shutdown()
