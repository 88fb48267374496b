"""Has all memories embedded again by another model, at an administrator's word."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import partial

from memserve.config import Settings
from memserve.domain import ReindexProgress
from memserve.errors import InvalidField, StartupError
from memserve.memory.texts.embedder_files import Prompts, open_embedder
from memserve.memory.texts.embedding import BertEmbedder
from memserve.memory.texts.encoders.cached import CachedEmbedding
from memserve.memory.texts.memory import VectorMemory
from memserve.memory.texts.reindexing import ReindexFigures
from memserve.metrics.embedding import EmbeddingMetrics
from memserve.model.checks import embedder_directory
from memserve.processes.supervised import Background
from memserve.turns import on_own_thread

BUNDLED_NAME = "bundled"
TELL_EVERY_S = 1.0
NAME_MAX_BYTES = 1024
PROMPT_MAX_BYTES = 1024
NO_PROMPTS = Prompts()


@dataclass(frozen=True, slots=True)
class EmbedderChoice:
    """The model that is to embed the memories."""

    name: str = ""
    """As the setting `embedder` takes it, or `bundled`. Empty: the one whose reindexing is under way."""
    prompts: Prompts = NO_PROMPTS
    """Empty ones: those that the model's files name."""


class Reindexer:
    """One reindexing at a time. It goes on when the call that began it ends."""

    def __init__(
        self, settings: Settings, texts: VectorMemory, metrics: EmbeddingMetrics, background: Background
    ) -> None:
        self._settings = settings
        self._texts = texts
        self._metrics = metrics
        self._background = background
        self._task: asyncio.Task[None] | None = None
        self._choice = EmbedderChoice()
        self._last = ReindexProgress(0, 0, "")

    async def reindex(
        self, choice: EmbedderChoice, *, cancel: bool = False
    ) -> AsyncGenerator[ReindexProgress, None]:
        """Begin it, or watch the one that is under way. Yields progress at least every TELL_EVERY_S.

        cancel: stop the one that is under way. The last progress then is not `done`.
        Raises InvalidField for a model that memserve cannot use, EmbedderChanged, VectorStoreUnavailable and
        RegistryUnavailable.
        """
        _check(choice)
        task = self._under_way(choice, begin=not cancel)
        if cancel:
            task.cancel()
        while not task.done():
            yield self._progress(done=False)
            await asyncio.wait([task], timeout=TELL_EVERY_S)
        if not task.cancelled():
            task.result()
        yield self._progress(done=not task.cancelled())

    def _under_way(self, choice: EmbedderChoice, *, begin: bool) -> asyncio.Task[None]:
        if self._task is not None and not self._task.done():
            if choice.name and choice != self._choice:
                raise InvalidField(
                    "embedder", f"{self._choice.name} embeds all memories now; cancel that first"
                )
            return self._task
        if not begin:
            raise InvalidField("cancel", "no reindexing is under way at this gateway")
        if not choice.name:
            raise InvalidField("embedder", f"must name a model, or be {BUNDLED_NAME}: none is under way")
        self._choice = choice
        self._last = ReindexProgress(0, 0, choice.name)
        self._task = self._background.begin("embedding memories again", self._run(choice))
        return self._task

    async def _run(self, choice: EmbedderChoice) -> None:
        try:
            embedder = await on_own_thread(partial(_opened, self._settings, choice))
        except StartupError as error:
            raise InvalidField("embedder", str(error)) from error
        target = CachedEmbedding(
            embedder, cache_bytes=self._settings.embedding_cache_bytes, metrics=self._metrics
        )
        try:
            await self._texts.reembed(target, self._tell)
        finally:
            self._metrics.reindexed.set(0)
            if self._texts.embedding is not target:
                target.close()

    def _tell(self, figures: ReindexFigures) -> None:
        self._metrics.reindexed.set(figures.looked_at)
        self._last = ReindexProgress(figures.looked_at, figures.memories, self._choice.name)

    def _progress(self, *, done: bool) -> ReindexProgress:
        if not done:
            return self._last
        total = self._last.memories_total
        return ReindexProgress(total, total, self._texts.embedder.name, done)


def _check(choice: EmbedderChoice) -> None:
    for field, text, most in (
        ("embedder", choice.name, NAME_MAX_BYTES),
        ("query_prompt", choice.prompts.query, PROMPT_MAX_BYTES),
        ("passage_prompt", choice.prompts.passage, PROMPT_MAX_BYTES),
    ):
        if len(text.encode()) > most or not text.isprintable():
            raise InvalidField(field, f"must be at most {most} bytes on one line")
    if choice.prompts != NO_PROMPTS and choice.name in ("", BUNDLED_NAME):
        raise InvalidField("query_prompt", "is for a model that `embedder` names")


def _opened(settings: Settings, choice: EmbedderChoice) -> BertEmbedder:
    """Blocks. Raises StartupError."""
    if choice.name == BUNDLED_NAME:
        return BertEmbedder()
    prompts = choice.prompts if choice.prompts != NO_PROMPTS else None
    return BertEmbedder(open_embedder(embedder_directory(settings, choice.name), prompts))
