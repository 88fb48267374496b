"""The embedding and the reranker that the settings name."""

from __future__ import annotations

from pathlib import Path

from memserve.config import Settings
from memserve.memory.texts.embedder_files import configured_embedder
from memserve.memory.texts.embedding import BertEmbedder
from memserve.memory.texts.encoders.cached import CachedEmbedding
from memserve.memory.texts.encoders.cross_encoder import CrossEncoder
from memserve.memory.texts.encoders.embedder import Embedder
from memserve.memory.texts.encoders.reranking import Reranking
from memserve.memory.texts.encoders.watched import WatchedEndpoint, open_endpoint
from memserve.metrics.embedding import EmbeddingMetrics
from memserve.turns import on_own_thread


async def open_embedding(
    settings: Settings, metrics: EmbeddingMetrics
) -> tuple[CachedEmbedding, WatchedEndpoint | None]:
    """What embeds, and the endpoint to look at where it is one. Raises StartupError."""
    watched = await open_endpoint(settings, metrics) if settings.embedder_url else None
    embedder: Embedder = (
        watched.embedder
        if watched is not None
        else await on_own_thread(lambda: BertEmbedder(configured_embedder(settings)))
    )
    embedding = CachedEmbedding(embedder, cache_bytes=settings.embedding_cache_bytes, metrics=metrics)
    return embedding, watched


async def open_reranking(settings: Settings, metrics: EmbeddingMetrics) -> Reranking | None:
    """None: the settings name no reranker. Raises StartupError."""
    if not settings.reranker:
        return None
    reranker = await on_own_thread(lambda: CrossEncoder(Path(settings.reranker)))
    return Reranking(reranker, settings.rerank_candidates, metrics=metrics)
