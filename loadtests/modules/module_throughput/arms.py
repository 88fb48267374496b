"""What is compared: vLLM alone, and memserve."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
from collections.abc import Iterable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from loadtests.harness.engines import engine_settings, prepare_environment
from loadtests.harness.figures import report
from loadtests.harness.up import is_engine
from loadtests.modules.module_throughput.load import ADAPTERS, BATCH, Asked, drive
from memserve.client import AsyncClient, CallFailed, Client
from memserve.config import MIB
from memserve.domain import Sampling
from memserve.embedded import Stack, marked_processes
from memserve.model.files import open_model

RANK = 16
KV_BYTES = 512 * MIB
START_TIMEOUT_S = 180.0
ROUND_TIMEOUT_S = 300.0


class Alone:
    """vLLM without memserve, in a process of its own."""

    def __init__(self, model: Path, adapters: Sequence[Path], *, own_arithmetic: bool) -> None:
        """own_arithmetic: vLLM's, not memserve's correction of it."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve_alone, args=(theirs, model, list(adapters), own_arithmetic)
        )
        self._process.start()
        if not self._pipe.poll(START_TIMEOUT_S):
            self.close()
            raise TimeoutError("vLLM alone does not start")
        self._pipe.recv()

    def run(self, requests: Sequence[Asked]) -> float:
        """As `drive`."""
        self._pipe.send(list(requests))
        if not self._pipe.poll(ROUND_TIMEOUT_S):
            raise TimeoutError("vLLM alone does not answer")
        return float(self._pipe.recv())

    @property
    def processes(self) -> list[psutil.Process]:
        process = psutil.Process(self._process.pid)
        return [process, *process.children(recursive=True)]

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._process.join(20)
        if self._process.is_alive():
            for process in self.processes:
                process.kill()
            self._process.join()


def _serve_alone(pipe: Connection, model: Path, adapters: Sequence[Path], own_arithmetic: bool) -> None:
    """The process of `Alone`: answers the runs that come through the pipe, until None comes."""
    prepare_environment()
    # Its sockets go with the model's directory.
    os.environ["VLLM_RPC_BASE_PATH"] = str(model.parent)
    asyncio.run(_serve_runs(pipe, model, adapters, own_arithmetic))


async def _serve_runs(pipe: Connection, model: Path, adapters: Sequence[Path], own_arithmetic: bool) -> None:
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    settings = engine_settings() | {"disable_log_stats": False}
    if own_arithmetic:
        settings["distributed_executor_backend"] = UniProcExecutor
    files = open_model(model)
    llm = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=str(model),
            dtype=files.dtype,
            max_model_len=files.max_context_tokens,
            max_num_seqs=BATCH,
            kv_cache_memory_bytes=KV_BYTES,
            enable_lora=True,
            max_loras=ADAPTERS,
            max_cpu_loras=2 * ADAPTERS,
            max_lora_rank=RANK,
            **settings,
        )
    )
    count = 0

    async def ask(request: Asked) -> int:
        nonlocal count
        count += 1
        number = request.adapter
        lora = (
            None if number is None else LoRARequest(adapters[number].name, number + 1, str(adapters[number]))
        )
        wanted = request.answer_tokens
        params = SamplingParams(
            temperature=0.0, max_tokens=wanted, min_tokens=wanted, output_kind=RequestOutputKind.DELTA
        )
        prompt: Any = {"prompt_token_ids": request.token_ids}
        tokens = 0
        async for output in llm.generate(prompt, params, str(count), lora_request=lora):
            tokens += len(output.outputs[0].token_ids)
        return tokens if tokens == wanted else -1

    pipe.send("ready")
    # Waiting blocks this loop: between two runs nothing is to be done in it.
    while (requests := pipe.recv()) is not None:
        pipe.send(await drive(ask, requests))
    llm.shutdown()


class Served:
    """memserve: a running stack with the adapters published, and its client."""

    def __init__(self, stack: Stack, adapters: Sequence[Path]) -> None:
        self._stack = stack
        with Client(stack.address) as client:
            self._references = [
                client.modules.publish(adapter.name, adapter).reference for adapter in adapters
            ]

    def run(self, requests: Sequence[Asked]) -> float:
        """As `drive`."""
        return asyncio.run(self._run(requests))

    async def _run(self, requests: Sequence[Asked]) -> float:
        async with AsyncClient(self._stack.address, timeout_s=ROUND_TIMEOUT_S) as client:

            async def ask(request: Asked) -> int:
                sampling = Sampling(max_tokens=request.answer_tokens, min_tokens=request.answer_tokens)
                module = "" if request.adapter is None else self._references[request.adapter]
                try:
                    answer = await client.generate(request.text, module=module, sampling=sampling)
                except CallFailed as error:
                    report(f"memserve: {error}")
                    return -1
                usage = answer.usage
                right = (usage.prompt_tokens, usage.output_tokens) == (
                    len(request.token_ids),
                    request.answer_tokens,
                )
                return usage.output_tokens if right else -1

            return await drive(ask, requests)

    @property
    def processes(self) -> list[psutil.Process]:
        return list(marked_processes(self._stack.settings.data))


def pin_engine(processes: Iterable[psutil.Process]) -> None:
    """Have the engine among the processes compute on the last core. Cores differ, and an engine stays on its
    core. Everything else may run on any core.
    """
    for process in processes:
        if is_engine(process):
            # The affinity of the main thread, which computes.
            os.sched_setaffinity(process.pid, {max(os.sched_getaffinity(0))})
            return
    raise RuntimeError("there is no engine to pin to a core")


def processor_s(processes: Iterable[psutil.Process]) -> float:
    """Processor time that living processes have taken so far."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total
