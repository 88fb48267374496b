"""Memories with known vectors and Zipf-distributed words, the same for every store that is measured."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memserve.domain import NewMemory
from memserve.memory.texts.encoders.embedder import BatchLimits
from memserve.memory.texts.milvus import Vectors

DIM = 384
TENANT = "acme"
NAMESPACES = ("n0", "n1", "n2", "n3")
OTHERS = 7
"""Other tenants. Half of the memories are theirs."""
LIMIT = 5
WRITES_PER_S, BATCH = 500, 50
NEW_FROM = 10_000_000
"""Numbers of the memories that are written while searches are timed."""
_WORDS = 50_000
_FUNCTION_WORDS = 60
_PART = 1000
_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
_VOCABULARY = [
    "".join(_SYLLABLES[rank // len(_SYLLABLES) ** place % len(_SYLLABLES)] for place in range(3))
    for rank in range(_WORDS)
]
"""By rank: pronounceable words without a digit, because a word with digits counts as a code."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of many calls."""

    seconds: tuple[float, ...]

    @property
    def p50_ms(self) -> float:
        return statistics.median(self.seconds) * 1000

    @property
    def p99_ms(self) -> float:
        return sorted(self.seconds)[int(len(self.seconds) * 0.99)] * 1000

    def figures(self) -> dict[str, float]:
        return {
            "p50_ms": round(self.p50_ms, 2), "p99_ms": round(self.p99_ms, 2), "count": len(self.seconds)
        }  # fmt: skip


class Corpus:
    """Every memory is made from its number: its tenant, namespace, text and vector."""

    def __init__(self) -> None:
        self._weights = 1 / np.arange(1, _WORDS + 1)
        self._weights /= self._weights.sum()

    def tenant(self, number: int) -> str:
        return TENANT if number % 2 == 0 else f"other-{number // 2 % OTHERS}"

    def namespace(self, number: int) -> str:
        return NAMESPACES[number // 2 % len(NAMESPACES)]

    def texts(self, first: int, count: int) -> list[str]:
        """15 to 60 words each, the most frequent ones left out, and the number as the last word."""
        rng = np.random.default_rng([1, first])
        lengths = rng.integers(15, 60, count)
        ranks = rng.choice(_WORDS, size=int(lengths.sum()), p=self._weights)
        ranks = np.where(ranks < _FUNCTION_WORDS, ranks + _FUNCTION_WORDS, ranks)
        ends = np.cumsum(lengths)
        return [
            " ".join(_VOCABULARY[rank] for rank in ranks[end - length : end]) + f" m{first + place}"
            for place, (length, end) in enumerate(zip(lengths, ends, strict=True))
        ]

    def memories(self, first: int, count: int) -> list[tuple[str, NewMemory]]:
        """With their tenants."""
        return [
            (
                self.tenant(number),
                NewMemory(self.namespace(number), text, "a benchmark", memory_id=f"m{number}"),
            )
            for number, text in enumerate(self.texts(first, count), first)
        ]

    def parts(self, rows: int) -> Iterator[range]:
        """The numbers of so many memories, in parts."""
        for first in range(0, rows, _PART):
            yield range(first, min(rows, first + _PART))

    def queries(self, count: int, rows: int) -> list[str]:
        """Eight words of one memory each, of any tenant's."""
        rng = np.random.default_rng(2)
        queries = []
        for number in rng.integers(0, max(1, rows), count):
            words = self.texts(int(number), 1)[0].split()[:-1]
            queries.append(" ".join(rng.choice(words, size=min(8, len(words)), replace=False)))
        return queries


def vector_of(text: str) -> Floats:
    """[DIM] of unit length, another one for each text."""
    seed = int.from_bytes(text.encode()[-24:], "big")
    vector = np.random.default_rng(seed).standard_normal(DIM, dtype=np.float32)
    return vector / np.float32(np.linalg.norm(vector))


class SeededEmbedder:
    """Stands in for an embedding model, because the time of embedding is reported beside a search's."""

    name = "seeded vectors"
    vectors = Vectors(DIM, "seeded")
    limits = BatchLimits(texts=1024, bytes=1 << 22, bytes_each=8192)

    def embed(self, texts: Sequence[str], *, query: bool = False) -> Floats:
        return np.stack([vector_of(text) for text in texts])

    def tokens(self, text: str) -> int:
        return len(text.split())


def timed(search: Callable[[int], object], count: int, budget_s: float) -> Timings:
    """Search one after another, at most `count` times and for `budget_s` seconds, and at least five times."""
    seconds: list[float] = []
    ends_s = time.perf_counter() + budget_s
    while len(seconds) < count and (len(seconds) < 5 or time.perf_counter() < ends_s):
        began_s = time.perf_counter()
        search(len(seconds))
        seconds.append(time.perf_counter() - began_s)
    return Timings(tuple(seconds))


class Writing:
    """Calls `write` with the numbers of BATCH new memories, WRITES_PER_S a second, on a thread of its own."""

    def __init__(self, write: Callable[[int, int], object]) -> None:
        self._write = write
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="benchmark-writes")
        self._seconds: list[float] = []
        self._began_s = self._ended_s = 0.0
        self._error: Exception | None = None

    def __enter__(self) -> Writing:
        self._began_s = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._ended_s = time.perf_counter()
        if self._error is not None:
            raise self._error

    @property
    def writes_per_s(self) -> float:
        return len(self._seconds) * BATCH / (self._ended_s - self._began_s)

    @property
    def timings(self) -> Timings:
        """Of the batches."""
        return Timings(tuple(self._seconds))

    def _run(self) -> None:
        due_s, number = self._began_s, NEW_FROM
        while not self._ended.is_set():
            began_s = time.perf_counter()
            try:
                self._write(number, BATCH)
            except Exception as error:
                self._error = error
                return
            self._seconds.append(time.perf_counter() - began_s)
            number += BATCH
            due_s += BATCH / WRITES_PER_S
            self._ended.wait(max(0.0, due_s - time.perf_counter()))
