"""Cold answers, and rounds of remote and local hits on every arm."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loadtests.harness.engines import (
    random_prompt,
)
from loadtests.harness.figures import report

if TYPE_CHECKING:
    pass
from loadtests.kv.kv_peers.arms import MEMSERVE, Arm

STORE_TIMEOUT_S = 30.0
# What of a prompt may miss: its last, partial chunk.
CACHED_AT_LEAST = 0.95


@dataclass
class Taken:
    """What one arm did with prompts of one length."""

    remote_s: list[float] = field(default_factory=list)
    local_s: list[float] = field(default_factory=list)
    local_reads: int = 0
    """How often the local hits asked Redis for a value."""
    read_bytes: int = 0
    """What Redis sent for one remote hit."""
    as_local: int = 0
    """Prompts that a remote hit answered as a local hit did, to the last bit of the log-probabilities."""
    as_cold: int = 0
    """Prompts that a remote hit answered with the tokens of the cold answer."""


def fill(arm: Arm, prompt: list[int], taken: Taken) -> None:
    """Ask a new prompt, wait until the store has it, and compare what a local and a remote hit answer."""
    wanted = arm.stored() + (len(prompt) - 1) // arm.chunk_tokens
    cold = arm.engine.answer(prompt)
    deadline_s = time.monotonic() + STORE_TIMEOUT_S
    while arm.stored() < wanted:
        if time.monotonic() > deadline_s:
            raise TimeoutError(
                f"{arm.name}: {arm.stored()} of {wanted} chunks are stored after {STORE_TIMEOUT_S:.0f} s"
            )
        time.sleep(0.02)
    local = arm.engine.answer(prompt)
    arm.forget()
    remote = arm.engine.answer(prompt)
    taken.as_local += remote == local
    taken.as_cold += [token for token, _ in remote] == [token for token, _ in cold]


def hit(arm: Arm, prompt: list[int]) -> tuple[float, int, int]:
    """Returns the TTFT of a hit in seconds, how often it asked Redis for a value, and the bytes that Redis
    sent.
    """
    values, sent = arm.read()
    seconds, cached = arm.engine.first_token(prompt)
    time.sleep(arm.settle_s)
    values_after, sent_after = arm.read()
    if cached < CACHED_AT_LEAST * len(prompt):
        raise AssertionError(f"{arm.name}: {cached} of {len(prompt)} tokens were cached")
    return seconds, values_after - values, sent_after - sent


def measure(arms: Sequence[Arm], tokens: int, prompts: int, rounds: int) -> dict[str, Taken]:
    """By name of the arm. Every prompt has a first round that warms up and does not count."""
    taken = {arm.name: Taken() for arm in arms}
    for number in range(prompts):
        prompt = random_prompt(tokens * 1000 + number, tokens)
        for arm in arms:
            report(f"{tokens} tokens, prompt {number + 1} of {prompts}: cold, {arm.name}")
            fill(arm, prompt, taken[arm.name])
        for turn in range(rounds + 1):
            first = turn % len(arms)
            for arm in (*arms[first:], *arms[:first]):
                own = taken[arm.name]
                arm.forget()
                time.sleep(arm.settle_s)
                remote_s, values, own.read_bytes = hit(arm, prompt)
                local_s, local_values, _ = hit(arm, prompt)
                if arm.redis is not None and values < (tokens - 1) // arm.chunk_tokens:
                    raise AssertionError(f"{arm.name}: a remote hit read {values} values from Redis")
                own.local_reads += local_values
                if turn:
                    own.remote_s.append(remote_s)
                    own.local_s.append(local_s)
            if turn:
                report(
                    f"round {turn} of {rounds}, remote: "
                    + ", ".join(f"{name} {own.remote_s[-1]:.3f} s" for name, own in taken.items())
                )
    return taken


def rows(tokens: int, taken: dict[str, Taken]) -> list[dict[str, Any]]:
    """One an arm, for the table and for JSON."""
    ours = taken[MEMSERVE].remote_s
    return [
        {
            "arm": name,
            "tokens": tokens,
            "remote_s": statistics.median(own.remote_s),
            "memserve_of_it": statistics.median(
                mine / other for mine, other in zip(ours, own.remote_s, strict=True)
            ),
            "local_s": statistics.median(own.local_s),
            "read_bytes": own.read_bytes,
            "local_reads": own.local_reads,
            "as_local": own.as_local,
            "as_cold": own.as_cold,
        }
        for name, own in taken.items()
    ]
