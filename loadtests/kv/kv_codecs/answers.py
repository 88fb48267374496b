"""The same questions asked of raw, lossless and int8 KV."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Sequence

import redis

from loadtests.harness.figures import report
from loadtests.harness.redis_server import wait_until_stored
from loadtests.kv.kv_codecs.engine import Answer, CodecEngine
from loadtests.kv.kv_codecs.prompts import Prompt
from memserve.kv.values.envelope import Codec


def ask_all(engine: CodecEngine, prompts: Sequence[Prompt], name: str) -> list[Answer]:
    engine.forget()
    answers = []
    for place, prompt in enumerate(prompts):
        answers.append(engine.ask(prompt.token_ids))
        if place % 50 == 0:
            report(f"{name}: {place} of {len(prompts)}")
    return answers


def ask_through_redis(
    url: str, client: redis.Redis, dtype: str, codec: Codec, prompts: Sequence[Prompt]
) -> list[Answer]:
    """The answers of a new engine of this codec with the KV that it has stored itself."""
    engine = CodecEngine(url, dtype, codec)
    ask_all(engine, prompts, f"{dtype}, {codec.name.lower()}, cold")
    wait_until_stored(client, 1.0)
    answers = ask_all(engine, prompts, f"{dtype}, {codec.name.lower()}")
    engine.close()
    del engine
    gc.collect()
    return answers


def compare(
    name: str, prompts: Sequence[Prompt], raw: Sequence[Answer], answers: Sequence[Answer]
) -> dict[str, object]:
    """logprob differences: of the token that raw answered; where it is not among the best of the other, of
    the least of those.
    """
    first, every = [], []
    for one, other in zip(raw, answers, strict=True):
        for place, token in enumerate(one.token_ids):
            there = other.logprobs[place]
            difference = abs(one.logprobs[place][token] - there.get(token, min(there.values())))
            every.append(difference)
            if place == 0:
                first.append(difference)
            if other.token_ids[place] != token:
                break
    figures: dict[str, object] = {
        "KV": name,
        "answers": len(answers),
        "with a hit": sum(answer.cached_tokens > 0 for answer in answers),
        "other tokens": sum(
            one.token_ids != other.token_ids for one, other in zip(raw, answers, strict=True)
        ),
        "first token |dlogp| mean": round(statistics.mean(first), 6),
        "max": round(max(first), 6),
        "all tokens |dlogp| mean": round(statistics.mean(every), 6),
        "max ": round(max(every), 6),
    }
    for task in sorted({prompt.task for prompt in prompts}):
        asked = [
            (prompt, answer) for prompt, answer in zip(prompts, answers, strict=True) if prompt.task == task
        ]
        figures[f"{task} right"] = (
            f"{sum(answer.text == prompt.expected for prompt, answer in asked)}/{len(asked)}"
        )
    return figures


def share_with_hit(answers: Sequence[Answer]) -> float:
    return sum(answer.cached_tokens > 0 for answer in answers) / len(answers)
