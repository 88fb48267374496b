"""Opens an endpoint's embedder, and looks at it from time to time: is it still the same model?"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial

from memserve.config import Settings
from memserve.errors import RegistryUnavailable, StartupError
from memserve.memory.texts.embedder_files import Prompts
from memserve.memory.texts.encoders.embedder import Floats
from memserve.memory.texts.encoders.endpoint import EndpointEmbedder, ask
from memserve.memory.texts.encoders.json_endpoint import EndpointFailed, JsonEndpoint
from memserve.memory.texts.encoders.references import (
    LEAST_AGREEMENT,
    PROBES,
    Reference,
    References,
    agreement,
    identity,
    named,
)
from memserve.memory.texts.milvus import Vectors
from memserve.metrics.embedding import EmbeddingMetrics
from memserve.turns import on_own_thread

log = logging.getLogger("memserve.memory.texts.encoders.watched")

CHECK_S = 3600.0
# Until the endpoint has answered for the first time, and while the model is another one.
CHECK_SOON_S = 30.0


class WatchedEndpoint:
    """An endpoint's embedder, with the reference that its model is held to."""

    def __init__(
        self,
        embedder: EndpointEmbedder,
        endpoint: JsonEndpoint,
        reference: Reference,
        prompts: Prompts,
        *,
        was_asked: bool,
        metrics: EmbeddingMetrics | None = None,
    ) -> None:
        """was_asked: whether the reference comes from an answer of now."""
        self.embedder = embedder
        self._endpoint = endpoint
        self._reference = reference
        self._prompts = prompts
        self._metrics = metrics or EmbeddingMetrics()
        self._due_s = time.monotonic() + (CHECK_S if was_asked else CHECK_SOON_S)

    async def look(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Ask for the probes when it is time. A model that is another one embeds nothing from then on."""
        if clock() < self._due_s:
            return
        self._due_s = clock() + CHECK_SOON_S
        vectors = await on_own_thread(
            partial(probe, self._endpoint, self.embedder.model, self._prompts, self.embedder.vectors.dim)
        )
        found = agreement(vectors, self._reference.vectors)
        self._metrics.changed.set(found < LEAST_AGREEMENT)
        if found < LEAST_AGREEMENT:
            if not self.embedder.drift:
                log.error(
                    "the model behind embedder_url is another one (agreement %.3f, at least %.2f is "
                    "expected): nothing is embedded by it",
                    found,
                    LEAST_AGREEMENT,
                )
            self.embedder.drift = (
                f"the model {self.embedder.model} behind embedder_url is another one than embedded the "
                f"memories (agreement {found:.3f}); put it back, or restart the gateway and embed the "
                "memories again"
            )
            return
        if self.embedder.drift:
            log.info("the model behind embedder_url is the same as before again")
        self.embedder.drift = ""
        self._due_s = clock() + CHECK_S

    def close(self) -> None:
        self.embedder.close()


def probe(endpoint: JsonEndpoint, model: str, prompts: Prompts, dim: int) -> Floats:
    """[len(PROBES), dim]: the probes as passages. Blocks. Raises EndpointFailed."""
    return ask(endpoint, model, [prompts.passage + text for text in PROBES], dim)


async def open_endpoint(settings: Settings, metrics: EmbeddingMetrics | None = None) -> WatchedEndpoint:
    """Ask the endpoint for the probes, and find out which model it is.

    An endpoint that does not answer is no hindrance where embedder_dim is set and a model of this name is
    known: the embedder is the newest of them, and is held to it once the endpoint answers.
    Raises StartupError.
    """
    prompts = Prompts(settings.embedder_query_prompt, settings.embedder_passage_prompt)
    model, dim = settings.embedder_model, settings.embedder_dim
    key = settings.embedder_key.get_secret_value()
    if key and settings.embedder_url.startswith("http://"):
        log.warning("embedder_key goes to embedder_url without encryption: it begins with http://")
    endpoint = JsonEndpoint(settings.embedder_url, key, settings.embedder_timeout_s)
    references = References(settings.redis, named(model, prompts))
    try:
        reference, was_asked = await _reference(endpoint, references, model, prompts, dim)
    except BaseException:
        endpoint.close()
        raise
    finally:
        await references.close()
    size = reference.vectors.shape[1]
    embedder = EndpointEmbedder(
        endpoint, model, Vectors(size, identity(model, prompts, reference)), prompts, settings.embedder_batch
    )
    return WatchedEndpoint(embedder, endpoint, reference, prompts, was_asked=was_asked, metrics=metrics)


async def _reference(
    endpoint: JsonEndpoint, references: References, model: str, prompts: Prompts, dim: int
) -> tuple[Reference, bool]:
    """What the model is held to, and whether it has answered now. Raises StartupError."""
    try:
        try:
            vectors = await on_own_thread(partial(probe, endpoint, model, prompts, dim))
        except EndpointFailed as failure:
            known = await references.newest(dim) if dim and failure.again else None
            if known is None:
                raise StartupError(f"embedder_url: {failure}") from None
            log.warning("embedder_url does not answer (%s); the gateway starts without it", failure)
            return known, False
        return await references.adopt(vectors), True
    except RegistryUnavailable as error:
        raise StartupError(f"embedder_url cannot be checked: {error}") from None
