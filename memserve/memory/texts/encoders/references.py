"""How the models behind endpoints have embedded a few fixed texts, kept for all gateways in the registry.

A name says nothing about what stands behind an endpoint. So a model is known by what it makes of the probes.
Its numbers differ a little from call to call, with the batch and the machine. So they are compared with a
tolerance, and a gateway that finds them like those of an earlier time takes the earlier ones for its own.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from memserve.errors import StartupError
from memserve.memory.texts.embedder_files import Prompts
from memserve.memory.texts.encoders.embedder import Floats
from memserve.registry.client import answering, close_client, registry_client

PROBES = (
    "The lighthouse keeper writes the weather into a book every evening.",
    "invoice 7741-B is due on 2031-03-09",
    "Wie spät fährt der letzte Zug nach Köln? 東京",
)
# Cosine of a probe's two vectors. Half precision and other batches stay above 0.9999, eight bits above 0.99.
# Another model of the same name, or a fine-tuned one, is below.
LEAST_AGREEMENT = 0.99
REFERENCES_MAX = 64
PREFIX = "memserve:embedder_probes:"
# The number of the reference that a gateway has adopted last.
_LAST = "last"


@dataclass(frozen=True, slots=True)
class Reference:
    """What a model made of the probes when it was first seen."""

    vectors: Floats
    """[len(PROBES), dim], of unit length."""

    @property
    def fingerprint(self) -> str:
        """Of the rounded vectors."""
        rounded = np.round(self.vectors.astype(np.float64), 3) + 0.0
        return hashlib.sha256(rounded.astype("<f4").tobytes()).hexdigest()[:16]


def agreement(one: Floats, other: Floats) -> float:
    """The least cosine over the probes; 0 where the dimensions differ."""
    if one.shape != other.shape:
        return 0.0
    return float(np.einsum("pd,pd->p", one, other).min())


def named(model: str, prompts: Prompts) -> str:
    """What is known of a model before it is asked. The host is no part of it: an endpoint may move."""
    return hashlib.sha256(repr((model, prompts.query, prompts.passage)).encode()).hexdigest()[:16]


def identity(model: str, prompts: Prompts, reference: Reference) -> str:
    """16 hex digits over all that the vectors depend on, as far as it can be seen from outside."""
    whole = (named(model, prompts), reference.vectors.shape[1], reference.fingerprint)
    return hashlib.sha256(repr(whole).encode()).hexdigest()[:16]


class References:
    """The references of one model's name, in the registry."""

    def __init__(self, redis_url: str, name: str) -> None:
        """name: of `named`."""
        self._redis = registry_client(redis_url)
        self._key = PREFIX + name

    async def close(self) -> None:
        await close_client(self._redis)

    async def newest(self, dim: int) -> Reference | None:
        """The one that a gateway has adopted last, if it is of this size. Raises RegistryUnavailable."""
        known = await self._known()
        async with answering():
            last = await self._redis.hget(self._key, _LAST)
        reference = known.get(int(last or 0))
        return None if reference is None or reference.vectors.shape[1] != dim else reference

    async def adopt(self, vectors: Floats) -> Reference:
        """The reference that agrees best with the vectors, or these as a new one.

        vectors: [len(PROBES), dim], of unit length.
        Raises RegistryUnavailable, and StartupError when there are too many.
        """
        while True:
            known = await self._known()
            agreements = {number: agreement(found.vectors, vectors) for number, found in known.items()}
            best = max(agreements, key=lambda number: agreements[number], default=0)
            if agreements.get(best, 0.0) >= LEAST_AGREEMENT:
                async with answering():
                    await self._redis.hset(self._key, _LAST, str(best))
                return known[best]
            number = max(known, default=0) + 1
            if len(known) >= REFERENCES_MAX:
                raise StartupError(
                    f"the model behind embedder_url has been another one {REFERENCES_MAX} times, and no more "
                    "are kept: give it a name of its own (embedder_model)"
                )
            # Another gateway may have added one under this number.
            async with answering():
                content = base64.b64encode(vectors.astype("<f4").tobytes()).decode()
                added = await self._redis.hsetnx(self._key, str(number), f"{vectors.shape[1]} {content}")
                if added:
                    await self._redis.hset(self._key, _LAST, str(number))
            if added:
                return Reference(vectors)

    async def _known(self) -> Mapping[int, Reference]:
        """By number, in the order they were added."""
        async with answering():
            entries = await self._redis.hgetall(self._key)
        entries.pop(_LAST, None)
        known = {}
        for number, entry in entries.items():
            dim, _, content = entry.partition(" ")
            vectors = np.frombuffer(base64.b64decode(content), dtype="<f4").reshape(len(PROBES), int(dim))
            known[int(number)] = Reference(vectors.astype(np.float32))
        return dict(sorted(known.items()))
