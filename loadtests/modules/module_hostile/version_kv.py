"""KV across the versions of a module: what memserve and a plain vLLM serve a version of another's KV."""

from __future__ import annotations

import contextlib
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from loadtests.harness.demo_engine import DemoEngine, DemoTokenizer
from loadtests.harness.engines import prepare_environment
from loadtests.harness.stack import ANSWER
from memserve.client import Answer, Client
from memserve.demo import ADAPTERS_DIR, facts
from memserve.embedded import Stack
from memserve.embedded.story import ask_and_store, long_prefix

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

UNLOADED_S = 60.0
PROMPT_TOKENS = 900


@dataclass(frozen=True, slots=True)
class Ask:
    """A request where KV of the same tokens is there."""

    what: str
    own: bool
    """Whether the version's own KV is there, or another version's only."""
    answer: Answer

    @property
    def row(self) -> list[object]:
        usage = self.answer.usage
        cached = usage.cached
        return [
            self.what,
            "own" if self.own else "another's",
            usage.prompt_tokens,
            cached.device,
            cached.host,
            cached.redis,
        ]


def ask_versions(stack: Stack, client: Client) -> tuple[list[Ask], bool]:
    """Ask the two versions of `kv`, the first of them live, with the same prompts.

    Returns the asks, and whether the first version gives the same tokens after a reload as before.
    """
    first, second = sorted(worker.worker_id for worker in client.status().workers)
    modules = client.modules
    asks: list[Ask] = []

    def ask(what: str, seed: int, reference: str, worker: str, own: bool) -> Answer:
        answer = client.generate(
            long_prefix(seed).messages, module=reference, worker_id=worker, sampling=ANSWER
        )
        asks.append(Ask(what, own, answer))
        return answer

    [cold] = ask_and_store(stack, client, [long_prefix(901)], first, "kv@1")
    ask("version 2, where Redis has version 1's", 901, "kv@2", second, False)
    ask("version 1 again, on that worker", 901, "kv@1", second, True)
    ask_and_store(stack, client, [long_prefix(902)], first, "kv@1")
    ask("version 2, where the worker has version 1's", 902, "kv@2", first, False)
    ask("version 1 again, on that worker", 902, "kv@1", first, True)
    ask_and_store(stack, client, [long_prefix(903)], first, "kv")
    modules.promote("kv", 2)
    ask("the alias, promoted from version 1 to 2", 903, "kv", first, False)
    for worker in (first, second):
        modules.unload("kv@1", worker_id=worker)
    digest = modules.version("kv@1").digest
    deadline_s = time.monotonic() + UNLOADED_S
    while any(digest in worker.modules for worker in client.status().workers):
        if time.monotonic() > deadline_s:
            raise RuntimeError("version 1 is not unloaded")
        time.sleep(0.1)
    ask_and_store(stack, client, [long_prefix(904)], first, "kv@2")
    modules.preload("kv@1", worker_id=first)
    ask("version 1 reloaded, where there is version 2's", 904, "kv@1", first, False)
    again = ask("version 1 reloaded", 901, "kv@1", first, True)
    return asks, again.token_ids == cold.token_ids


class NamedVersions:
    """Two adapters as two versions of one module, named as memserve names versions, and by one name."""

    def __init__(self, folder: Path) -> None:
        """folder: the working directory of the engine. Adapters are copied into it."""
        from memserve.config import load_settings
        from memserve.worker.modules.kinds.lora import LoraKind

        self.digests = {"harbour": "aa" * 32, "observatory": "bb" * 32}
        for adapter, digest in self.digests.items():
            shutil.copytree(ADAPTERS_DIR / adapter, folder / "modules" / digest)
        self._folder = folder
        self._holder = LoraKind(cast(Any, None), load_settings({}))

    def by_digest(self, adapter: str) -> LoRARequest:
        return self._holder.request(self.digests[adapter])

    def without_digest(self, adapter: str) -> LoRARequest:
        from vllm.lora.request import LoRARequest

        shutil.rmtree(self._folder / "modules" / "module", ignore_errors=True)
        shutil.copytree(ADAPTERS_DIR / adapter, self._folder / "modules" / "module")
        return LoRARequest("module", 9, "modules/module")


def engine_cached_tokens(folder: Path) -> dict[str, int]:
    """Cached tokens of the second version's first ask in a vLLM engine, by how the versions are named.
    Changes the working directory.

    The first version is asked with the same prompt before, and unloaded.
    """
    prepare_environment()
    from vllm import SamplingParams

    tokenizer = DemoTokenizer()
    versions = NamedVersions(folder)
    schemes = {"memserve's": versions.by_digest, "without the digest": versions.without_digest}
    params = SamplingParams(temperature=0, max_tokens=8)
    cached = {}
    with contextlib.chdir(folder):
        engine = DemoEngine(
            {
                "max_num_seqs": 4,
                "kv_cache_memory_bytes": 128 << 20,
                "enable_lora": True,
                "max_loras": 2,
                "max_lora_rank": 16,
            }
        )
        try:
            for seed, (name, request) in enumerate(schemes.items(), 905):
                book = facts.handbook(seed, PROMPT_TOKENS)
                [question] = facts.handbook_questions(book, seed, 1)
                prompt = tokenizer.prompt(facts.prompt(book.text, [], question.text))
                for adapter in versions.digests:
                    lora = request(adapter)
                    cached[name] = engine.output(prompt, params, lora).num_cached_tokens or 0
                    engine.llm.llm_engine.remove_lora(lora.lora_int_id)
        finally:
            engine.close()
    return cached
