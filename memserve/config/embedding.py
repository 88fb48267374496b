"""The models that read the memories: the embedding model and the reranker."""

from __future__ import annotations

from typing import Self
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, SecretStr, field_validator, model_validator

MIB = 1 << 20


class EmbeddingSettings(BaseModel):
    """Of the vector memory."""

    embedder: str = Field(
        "",
        description="Sentence embedding model of the vector memory, named as `model` is: "
        "BERT, RoBERTa or XLM-RoBERTa as sentence-transformers has them, like "
        "intfloat/multilingual-e5-small. Empty: the bundled all-MiniLM-L6-v2, which knows English.",
    )
    embedder_query_prompt: str = Field(
        "",
        max_length=1000,
        description="What the embedding model wants before a query, like `query: `. Empty: what its files "
        "say.",
    )
    embedder_passage_prompt: str = Field(
        "",
        max_length=1000,
        description="What the embedding model wants before a memory, like `passage: `. Empty: what its "
        "files say.",
    )
    embedder_url: str = Field(
        "",
        max_length=2000,
        description="Endpoint with OpenAI's API that embeds in place of a model here, like "
        "https://host/v1; `/embeddings` is put behind it. Needs embedder_model. Empty: none.",
    )
    embedder_model: str = Field(
        "", max_length=200, description="The model that embedder_url is asked for, by the endpoint's name."
    )
    embedder_key: SecretStr = Field(
        SecretStr(""), description="Key that embedder_url asks for, sent as a bearer token. Empty: none."
    )
    embedder_dim: int = Field(
        0,
        ge=0,
        le=8192,
        description="Numbers in a vector of embedder_url. 0: what it answers at the start. With a number, a "
        "gateway also starts while an endpoint that it has known does not answer.",
    )
    embedder_timeout_s: float = Field(
        10.0,
        gt=0,
        le=300,
        description="Time that embedder_url may take for a batch of texts, further tries included.",
    )
    embedder_batch: int = Field(
        32, ge=1, le=2048, description="Texts that embedder_url is sent in one call at most."
    )
    embedding_cache_bytes: int = Field(
        32 * MIB,
        ge=0,
        le=16 << 30,
        description="Memory of a gateway for embeddings of texts that come again. 0: none are kept.",
    )
    reranker: str = Field(
        "",
        description="Cross-encoder that puts recalled memories in order, named as `model` is: BERT, RoBERTa "
        "or XLM-RoBERTa with one label, as sentence-transformers' CrossEncoder saves it. Empty: none.",
    )
    rerank_candidates: int = Field(
        16,
        ge=2,
        le=64,
        description="Memories that the reranker reads for a search, the best of the search's own order. "
        "Fewer where the time of the search does not do for them.",
    )

    @field_validator("embedder_url")
    @classmethod
    def _is_an_endpoint(cls, url: str) -> str:
        if not url:
            return url
        try:
            parts = urlsplit(url)
            known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            raise ValueError("must be http:// or https:// with a host") from None
        if not known or not url.isprintable() or " " in url or not url.isascii():
            raise ValueError("must be http:// or https:// with a host")
        if parts.username is not None or parts.password is not None:
            raise ValueError("must have no password in it; set embedder_key")
        if parts.query or parts.fragment:
            raise ValueError("must end with its path, without ? and #")
        return url.rstrip("/")

    @field_validator("embedder_key")
    @classmethod
    def _fits_into_a_header(cls, key: SecretStr) -> SecretStr:
        text = key.get_secret_value()
        if not text.isascii() or not (text.isprintable() and " " not in text):
            raise ValueError("must be printable ASCII without spaces")
        return key

    @model_validator(mode="after")
    def _one_embedder(self) -> Self:
        if self.embedder_url and not self.embedder_model:
            raise ValueError("embedder_url needs embedder_model")
        if self.embedder_url and self.embedder:
            raise ValueError("embedder names a model here and embedder_url one elsewhere; set one of them")
        if self.embedder_model and not self.embedder_url:
            raise ValueError("embedder_model is a name at embedder_url, which is not set; use embedder")
        return self
