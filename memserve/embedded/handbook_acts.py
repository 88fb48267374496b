"""What `memserve demo` does on a real language model, act by act, each with its figures by name."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import redis

from memserve.client import Answer, CallFailed, Client
from memserve.demo import handbook as book
from memserve.domain import GateReport, Message, ModuleVersion, NewMemory, Role, Sampling
from memserve.embedded import Stack
from memserve.embedded.story import Prefix, ask_and_store, cache_entries
from memserve.policy.modules.gate import CALIBRATION

NAMESPACE = "handbook"
LORA, CARTRIDGE, CARELESS = "handbook", "handbook-cartridge", "careless"
NIGHTS = 145
"""Of the log: with the handbook behind it about 4,000 tokens."""
ANSWER = Sampling(max_tokens=24)
RECALL_TIMEOUT_MS = 10_000
PASSAGES = 3
AT_ONCE = 8
EXAMPLES = (0, 16, 23)
"""Facts whose questions are shown."""
COMPOSED_RANK = 3
FOLDERS = {LORA: book.LORA_DIR, CARTRIDGE: book.CARTRIDGE_DIR, CARELESS: book.CARELESS_DIR}

Ask = Callable[[str], Answer]


def remember(client: Client) -> dict[str, Any]:
    """Keep the handbook, a fact in each memory."""
    began_s = time.monotonic()
    facts = book.handbook()
    memories = (NewMemory(NAMESPACE, fact.text, "the handbook") for fact in facts)
    stored = [result for result in client.remember_many(memories) if result.remembered]
    return {"memories": len(stored), "seconds": time.monotonic() - began_s, "first": facts[0].text}


def recall(client: Client) -> dict[str, Any]:
    """Every question without and with recall."""
    return {
        "without": asked_all(partial(client.generate, sampling=ANSWER)),
        "with": asked_all(partial(_recalled, client)),
    }


def _recalled(client: Client, question: str) -> Answer:
    return client.generate(
        question,
        namespaces=[NAMESPACE],
        recall_limit=PASSAGES,
        recall_timeout_ms=RECALL_TIMEOUT_MS,
        sampling=ANSWER,
    )


def asked_all(ask: Ask) -> dict[str, Any]:
    """The examples one after the other, for their times, and then all questions together."""
    facts = book.handbook()
    shown = [ask(facts[place].question) for place in EXAMPLES]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        answers = list(threads.map(ask, [fact.question for fact in facts]))
    return {
        "asked": len(facts),
        "right": sum(fact.is_right(answer.text) for fact, answer in zip(facts, answers, strict=True)),
        "prompt_tokens": round(statistics.mean(answer.usage.prompt_tokens for answer in shown)),
        "cartridge_tokens": max(answer.usage.cached.cartridge for answer in shown),
        "ttft_ms": statistics.median(answer.usage.ttft_ms for answer in shown),
        "examples": [
            {"question": facts[place].question, "answer": " ".join(answer.text.split())}
            for place, answer in zip(EXAMPLES, shown, strict=True)
        ],
    }


class LongText:
    """A prompt of about 4,000 tokens, and who has its KV."""

    def __init__(self, stack: Stack, client: Client) -> None:
        self._stack = stack
        self._client = client
        fact = book.handbook()[0]
        asked = (Message(Role.SYSTEM, book.long_text(NIGHTS)), Message(Role.USER, fact.question))
        self._prefix = Prefix(asked, fact.value)
        self._entries: list[bytes] = []
        self._cold: Answer | None = None

    def cold_warm_other(self) -> dict[str, Any]:
        """No worker has it; one has it; the other takes it from Redis."""
        first, other = self._workers()
        before = cache_entries(self._stack)
        [cold] = ask_and_store(self._stack, self._client, [self._prefix], first)
        self._entries = sorted(cache_entries(self._stack) - before)
        self._cold = cold
        return {
            "cold": self._figures(cold),
            "warm": self._figures(self._ask(first)),
            "other worker": self._figures(self._ask(other)),
        }

    def after_restart(self) -> dict[str, Any]:
        """New processes serve: what they know of the text is in Redis."""
        began_s = time.monotonic()
        self._stack.restart_workers()
        restart_s = time.monotonic() - began_s
        return {**self._figures(self._ask(self._workers()[0])), "restart_s": restart_s}

    def tampered(self) -> dict[str, Any]:
        """Flip a bit of every entry, and ask the worker that has not read them yet."""
        with redis.Redis.from_url(self._stack.settings.cache_redis) as cache:
            for key in self._entries:
                value = bytearray(cache.get(key))
                value[len(value) // 2] ^= 1
                cache.set(key, bytes(value), keepttl=True)
        return {**self._figures(self._ask(self._workers()[1])), "entries": len(self._entries)}

    def _workers(self) -> list[str]:
        return sorted(worker.worker_id for worker in self._client.status().workers)[:2]

    def _ask(self, worker_id: str) -> Answer:
        return self._client.generate(self._prefix.messages, worker_id=worker_id, sampling=ANSWER)

    def _figures(self, answer: Answer) -> dict[str, Any]:
        assert self._cold is not None
        cached = answer.usage.cached
        return {
            "prompt_tokens": answer.usage.prompt_tokens,
            "ttft_ms": answer.usage.ttft_ms,
            "ttft_of_cold": answer.usage.ttft_ms / self._cold.usage.ttft_ms,
            "cached_share": cached.total / answer.usage.prompt_tokens,
            "cached_on_worker": cached.device + cached.host,
            "cached_from_redis": cached.redis,
            "same_tokens_as_cold": answer.token_ids == self._cold.token_ids,
            "answer": " ".join(answer.text.split()),
        }


def gates(client: Client, folders: Mapping[str, Path] = FOLDERS) -> dict[str, Any]:
    """Publish what was distilled, and have each version's probes asked: two that pass and one that does not.

    The workers share the three. folders: of each module.
    """
    began_s = time.monotonic()
    with ThreadPoolExecutor(len(folders)) as threads:
        tried = list(threads.map(partial(_promoted, client), folders, folders.values()))
    return {**dict(zip(folders, tried, strict=True)), "seconds": time.monotonic() - began_s}


def _promoted(client: Client, name: str, folder: Path) -> dict[str, Any]:
    made = json.loads((folder / "made.json").read_text(encoding="utf-8"))
    version = client.modules.publish(name, folder, sources=made["sources"], recipe=json.dumps(made["recipe"]))
    refusal = ""
    try:
        client.modules.promote(name, version.version)
    except CallFailed as refused:
        refusal = refused.detail
        if name != CARELESS:
            # The story goes on, and names the bar that was missed.
            client.modules.promote(name, version.version, force=True, reason="for the acts behind it")
    return {
        **_of_version(client.modules.version(version.reference)),
        "refusal": refusal,
        "cpu_s": made["cpu_s"],
    }


def _of_version(version: ModuleVersion) -> dict[str, Any]:
    return {
        "reference": version.reference,
        "kind": str(version.kind),
        "rank": version.rank,
        "positions": version.prefix_tokens,
        "bytes": version.size_bytes,
        "gate": _of_gate(version.gate),
    }


def _of_gate(report: GateReport | None) -> dict[str, Any]:
    if report is None:
        return {"passed": False, "probes": 0, "figures": {}}
    return {
        "passed": report.passed,
        "probes": sum(figure.probes for figure in report.figures if figure.name != CALIBRATION),
        "figures": {
            figure.name: {"base": figure.base, "module": figure.module, "holds": figure.holds}
            for figure in report.figures
        },
    }


def without_text(client: Client) -> dict[str, Any]:
    """Every question with no text in the prompt: with the LoRA, and behind the cartridge."""
    return {
        LORA: asked_all(partial(client.generate, module=LORA, sampling=ANSWER)),
        CARTRIDGE: asked_all(partial(client.generate, modules=[CARTRIDGE], sampling=ANSWER)),
    }


def composed(client: Client) -> dict[str, Any]:
    """The LoRA at a lower rank as its next version: its gate, its answers, and the way back."""
    question = book.handbook()[EXAMPLES[0]].question
    ask = partial(client.generate, question, module=LORA, sampling=ANSWER)
    before = ask()
    version = client.modules.compose(LORA, "compress", {f"{LORA}@live": 1.0}, rank=COMPOSED_RANK)
    refusal = ""
    try:
        client.modules.promote(LORA, version.version)
    except CallFailed as refused:
        refusal = refused.detail
        client.modules.promote(LORA, version.version, force=True, reason="to show a rollback")
    during = ask()
    began_s = time.monotonic()
    client.modules.rollback(LORA)
    back_ms = 1000 * (time.monotonic() - began_s)
    after = ask()
    return {
        **_of_version(client.modules.version(version.reference)),
        "refusal": refusal,
        "answers": _texts([before, during, after]),
        "versions": [answer.route.modules[0].version for answer in (before, during, after)],
        "rollback_ms": back_ms,
        "same_after": after.token_ids == before.token_ids,
    }


def _texts(answers: Sequence[Answer]) -> list[str]:
    return [" ".join(answer.text.split()) for answer in answers]
