"""The same questions asked of raw, lossless and int8 KV."""

from __future__ import annotations

import gc
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import redis

from loadtests.harness.figures import report
from loadtests.harness.redis_server import PrivateRedis, wait_until_stored
from loadtests.kv.kv_codecs.engine import Answer, CodecEngine, chunk_layout, stored_chunks
from loadtests.kv.kv_codecs.kernels import arrangement_error
from loadtests.kv.kv_codecs.loads import SAMPLE_BYTES
from loadtests.kv.kv_codecs.methods import Bytes
from loadtests.kv.kv_codecs.prompts import QUESTIONS_PER_BOOK, Prompt
from memserve.kv.values.envelope import Codec

# When nothing was stored for this long, an engine has stored everything.
STORED_QUIET_S = 1.0


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
    wait_until_stored(client, STORED_QUIET_S)
    answers = ask_all(engine, prompts, f"{dtype}, {codec.name.lower()}")
    engine.close()
    del engine
    gc.collect()
    return answers


@dataclass(frozen=True, slots=True)
class Answers:
    """What the engines of one dtype answered to the same prompts, and the KV that they stored."""

    computed: list[Answer]
    """By the engine that stores raw, cold."""
    raw: list[Answer]
    """By the same engine, with its KV from Redis."""
    raw_again: list[Answer]
    """The same once more: what differs here is no codec's doing."""
    others: dict[str, list[Answer]]
    """By engines of other codecs, by the codec's name."""
    samples: list[Bytes]
    """Chunks of handbooks, SAMPLE_BYTES each."""
    arrangement_error: float | None
    """As of `arrangement_error`; None where it cannot be compared."""


def ask_every_codec(dtype: str, prompts: Sequence[Prompt], codecs: Sequence[Codec]) -> Answers:
    """codecs: those that are asked beside raw."""
    layout = chunk_layout(dtype)
    with (
        tempfile.TemporaryDirectory() as folder,
        PrivateRedis(Path(folder)) as server,
        redis.Redis.from_url(server.url) as client,
    ):
        engine = CodecEngine(server.url, dtype, Codec.RAW)
        computed = ask_all(engine, prompts, f"{dtype}, cold")
        wait_until_stored(client, STORED_QUIET_S)
        raw = ask_all(engine, prompts, f"{dtype}, raw")
        raw_again = ask_all(engine, prompts, f"{dtype}, raw again")
        samples = draw_samples(client, prompts)
        error = None
        if dtype == "float32" and layout.packing == "vec":
            longest = max(prompts, key=lambda prompt: len(prompt.token_ids)).token_ids
            error = arrangement_error(layout, stored_chunks(client, longest), longest)
        engine.close()
        del engine
        gc.collect()
        others = {
            codec.name.lower(): ask_through_redis(server.url, client, dtype, codec, prompts)
            for codec in codecs
        }
    report(f"{dtype}: {SAMPLE_BYTES // layout.raw_bytes} chunks a sample, {len(samples)} samples")
    return Answers(computed, raw, raw_again, others, samples, error)


def draw_samples(client: redis.Redis, prompts: Sequence[Prompt]) -> list[Bytes]:
    """At most three samples of the raw chunks of different handbooks."""
    handbooks = [prompt.token_ids for prompt in prompts if prompt.task == "handbook"]
    pool = b"".join(
        b"".join(stored_chunks(client, token_ids)) for token_ids in handbooks[::QUESTIONS_PER_BOOK]
    )
    return [
        np.frombuffer(pool, np.uint8, SAMPLE_BYTES, place * SAMPLE_BYTES)
        for place in range(min(3, len(pool) // SAMPLE_BYTES))
    ]


def compare(
    name: str, prompts: Sequence[Prompt], raw: Sequence[Answer], answers: Sequence[Answer]
) -> dict[str, object]:
    """logprob differences: of the token that raw answered; where it is not among the best of the other, of
    the least of those.
    """
    first, every = [], []
    for mine, other in zip(raw, answers, strict=True):
        for place, token in enumerate(mine.token_ids):
            best = other.logprobs[place]
            difference = abs(mine.logprobs[place][token] - best.get(token, min(best.values())))
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
            mine.token_ids != other.token_ids for mine, other in zip(raw, answers, strict=True)
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
